"""python -m cops_jax.weights is the command `cops weights`."""

import sys

from cops_jax.commands.weights import main

if __name__ == "__main__":
  sys.exit(main())
