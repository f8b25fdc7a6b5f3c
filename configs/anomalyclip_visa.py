"""AnomalyCLIP's published recipe: trained on VisA, for MVTec AD only.

  cops train --config=anomalyclip_visa --workdir=runs/a_visa
  cops evaluate --workdir=runs/a_visa

Published result on MVTec AD in percent: image AUROC 91.5, image AP 96.2, pixel
AUROC 91.1, PRO (AUPRO from 200 thresholds) 81.4. The time is unknown, because
this recipe has not been run with the real data yet.
"""

from cops_jax.config import default


def get_config():
  """Returns a config with the vision tower and dtype of the authors' code."""
  config = default()
  config.method = "anomalyclip"
  config.backbone.weights = "openai/clip-vit-large-patch14-336"
  config.backbone.dtype = "float32"

  config.model.image_size_pixels = 518
  config.model.feature_layers = (24,)
  config.model.num_value_layers = 19
  config.model.num_context_words = 12
  config.model.deep_prompt_length = 4
  config.model.deep_prompt_depth = 8
  config.model.deep_prompt_cast = "float16"
  config.model.temperature = 0.07

  config.train.dataset = "visa"
  config.train.num_epochs = 15
  config.train.batch_size = 8
  config.train.learning_rate = 1e-3
  config.train.b1 = 0.5
  config.train.b2 = 0.999

  config.evaluation.datasets = ("mvtec_ad",)
  return config
