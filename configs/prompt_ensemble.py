"""The prompt ensemble: hand-written texts without training, on all data sets.

  cops evaluate --config=prompt_ensemble --workdir=runs/ensemble --datasets=all

It combines AnomalyCLIP's vision tower and maps with texts like WinCLIP's. No
result of this combination is published. The time is unknown, because this
recipe has not been run with the real data yet.
"""

from cops_jax.config import default


def get_config():
  """Returns a config with the vision tower and dtype of AnomalyCLIP's code."""
  config = default()
  config.method = "prompt_ensemble"
  config.backbone.weights = "openai/clip-vit-large-patch14-336"
  config.backbone.dtype = "float32"

  config.model.image_size_pixels = 518
  config.model.feature_layers = (24,)
  config.model.num_value_layers = 19
  config.model.texts = "photos"
  config.model.object_name = "object"
  config.model.temperature = 0.07

  config.evaluation.datasets = ("mvtec_ad", "visa")
  return config
