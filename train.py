"""Runs `cops train` from a clone.

python train.py --config=configs/demo.py --workdir=runs/demo
"""

from cops_jax.commands.train import main

if __name__ == "__main__":
  raise SystemExit(main())
