"""python -m cops_jax.demo is the command `cops demo`."""

import sys

from cops_jax.commands.demo import main

if __name__ == "__main__":
  sys.exit(main())
