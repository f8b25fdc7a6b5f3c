"""CoPS's published recipe: trained on VisA, for all other data sets.

  cops train --config=visa --workdir=runs/visa
  cops evaluate --workdir=runs/visa

Published result on MVTec AD in percent: image AUROC 95.0, image AP 97.8, pixel
AUROC 93.4, pixel AP 41.9. The authors used one GPU. The time is unknown,
because this recipe has not been run on a GPU with the real data yet.
"""

from cops_jax.config import default


def get_config():
  """Returns the defaults, with this recipe's values written out."""
  config = default()
  config.method = "cops"
  config.backbone.weights = "openai/clip-vit-large-patch14-336"

  config.model.image_size_pixels = 518
  config.model.feature_layers = (24,)
  config.model.num_value_layers = 24
  config.model.smoothing_window_patches = 5
  config.model.num_heads = 12
  config.model.num_context_words = 6
  config.model.num_state_words = 6
  config.model.num_category_words = 2
  config.model.deep_prompt_length = 4
  config.model.deep_prompt_depth = 8

  config.train.dataset = "visa"
  config.train.num_epochs = 10
  config.train.batch_size = 8
  config.train.learning_rate = 1e-3
  config.train.b1 = 0.5
  config.train.b2 = 0.999
  config.train.reconstruction = "none"

  config.evaluation.datasets = ("mvtec_ad",)
  config.evaluation.num_samples = 10
  config.evaluation.alpha = 0.26
  config.evaluation.beta = 0.9
  return config
