"""UniADet on the demo's generated data and toy CLIP, without a download.

  cops train --config=uniadet_demo --workdir=runs/u_demo
  cops evaluate --workdir=runs/u_demo

--config=uniadet_demo:augmented trains with class-aware augmentation, as the
published recipe does. Augmented images cannot use cached features.
"""

from cops_jax.config import default


def get_config(variant="plain"):
  """Returns the config of a tiny UniADet.

  It uses the last three of the toy CLIP's five layers.

  Args:
    variant: "plain" or "augmented".
  """
  config = default()
  config.method = "uniadet"
  config.backbone.weights = "demo"
  config.backbone.dtype = "float32"
  config.feature_cache.dtype = "float32"

  config.model.image_size_pixels = 112
  config.model.feature_layers = (3, 4, 5)
  config.model.num_value_layers = 0

  config.train.dataset = "demo_auxiliary"
  config.train.num_epochs = 15
  config.train.batch_size = 8
  config.train.learning_rate = 1e-3
  config.train.augmentation = {"plain": "none", "augmented": "class_aware"}[
    variant
  ]

  config.evaluation.datasets = ("demo_unseen",)
  config.evaluation.batch_size = 8
  config.evaluation.beta = 0.5
  return config
