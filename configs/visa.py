"""The published recipe trained on VisA.

  python train.py --config=configs/visa.py --workdir=runs/visa
  python eval.py --workdir=runs/visa

Published result on MVTec AD, in percent: image AUROC 95.0, image AP 97.8, pixel
AUROC 93.4, pixel AP 41.9. The authors used one GPU. No time is given here, as
this code has not been run on one with the real data yet.
"""

from cops_jax.config import recipe


def get_config():
  """The default is this recipe."""
  return recipe("visa")
