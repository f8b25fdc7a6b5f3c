"""The published recipe trained on MVTec AD, evaluated on VisA.

  python train.py --config=configs/mvtec.py --workdir=runs/mvtec
  python eval.py --workdir=runs/mvtec

Published result on VisA, in percent: image AUROC 85.4, image AP 88.0, pixel
AUROC 95.7, pixel AP 23.4. The authors used one GPU. No time is given here, as
this code has not been run on one with the real data yet.
"""

from cops_jax.config import recipe


def get_config():
  """The default with the MVTec recipe's overrides."""
  return recipe("mvtec")
