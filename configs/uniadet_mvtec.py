"""UniADet's published recipe: trained on MVTec AD, for VisA only.

  cops train --config=uniadet_mvtec --workdir=runs/u_mvtec
  cops evaluate --workdir=runs/u_mvtec

The backbone is DINOv2; uniadet_mvtec:clip and uniadet_mvtec:dinov3 use CLIP and
DINOv3.

Published image AUROC and pixel AP on VisA in percent: 91.3 and 32.7; with CLIP
88.0 and 28.0; with DINOv3 91.9 and 32.5. Two reproductions with DINOv2 measured
89.6 to 90.9 and 32.2 to 33.1. The time is unknown, because this recipe has not
been run with the real data yet.
"""

from cops_jax.config import recipe


def get_config(backbone="dinov2"):
  """Returns the recipe for VisA with the data sets exchanged."""
  config = recipe(f"uniadet_visa:{backbone}")
  config.train.dataset = "mvtec_ad"
  config.evaluation.datasets = ("visa",)
  return config
