"""Runs `cops evaluate` from a clone.

python eval.py --workdir=runs/demo
"""

from cops_jax.commands.evaluate import main

if __name__ == "__main__":
  raise SystemExit(main())
