"""UniADet's published recipe trained on MVTec AD, for VisA only.

  cops train --config=uniadet_mvtec --workdir=runs/u_mvtec
  cops evaluate --workdir=runs/u_mvtec

Backbones as in uniadet_visa. Published results on VisA, in percent, image
AUROC and pixel AP: 91.3 and 32.7; with CLIP 88.0 and 28.0, with DINOv3 91.9 and
32.5. Two reproductions with DINOv2 had 89.6 to 90.9 and 32.2 to 33.1. No time
is given here, as this code has not been run with the real data yet.
"""

from cops_jax.config import recipe


def get_config(backbone="dinov2"):
  """The values that differ from the recipe for VisA."""
  config = recipe(f"uniadet_visa:{backbone}")
  config.train.dataset = "mvtec_ad"
  config.evaluation.datasets = ("visa",)
  return config
