"""python -m cops_jax.datasets is the command `cops datasets`."""

import sys

from cops_jax.commands.datasets import main

if __name__ == "__main__":
  sys.exit(main())
