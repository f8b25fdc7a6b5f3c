"""CoPS's published recipe: trained on MVTec AD, for VisA only.

  cops train --config=mvtec --workdir=runs/mvtec
  cops evaluate --workdir=runs/mvtec

Published result on VisA in percent: image AUROC 85.4, image AP 88.0, pixel
AUROC 95.7, pixel AP 23.4. The authors used one GPU. The time is unknown,
because this recipe has not been run on a GPU with the real data yet.
"""

from cops_jax.config import recipe


def get_config():
  """Returns the recipe for VisA with the values that differ in the paper."""
  config = recipe("visa")
  config.model.smoothing_window_patches = 3

  config.train.dataset = "mvtec_ad"
  config.train.num_epochs = 5
  config.train.reconstruction = "pairwise"

  config.evaluation.datasets = ("visa",)
  config.evaluation.alpha = 0.35
  config.evaluation.beta = 1.0
  return config
