"""AnomalyCLIP's published recipe: trained on MVTec AD, for all other data sets.

  cops train --config=anomalyclip_mvtec --workdir=runs/a_mvtec
  cops evaluate --workdir=runs/a_mvtec

Published result on VisA in percent: image AUROC 82.1, image AP 85.4, pixel
AUROC 95.5, PRO (AUPRO from 200 thresholds) 87.0. The time is unknown, because
this recipe has not been run with the real data yet.
"""

from cops_jax.config import recipe


def get_config():
  """Returns the recipe for VisA with the data sets exchanged."""
  config = recipe("anomalyclip_visa")
  config.train.dataset = "mvtec_ad"
  config.evaluation.datasets = ("visa",)
  return config
