"""python -m cops_jax.export is the command `cops export`."""

import sys

from cops_jax.commands.export import main

if __name__ == "__main__":
  sys.exit(main())
