"""The embedded default: generated data and a toy CLIP, no download."""

from configs import default


def get_config():
  """The default at a tiny size."""
  config = default.get_config()
  config.clip.weights = "demo"
  config.clip.dtype = "float32"
  config.model.image_size_pixels = 112
  config.model.feature_layers = (5,)
  config.model.num_value_layers = 3
  config.model.smoothing_window_patches = 1
  config.model.num_heads = 8
  config.model.deep_prompt_depth = 3
  config.train.dataset = "demo_auxiliary"
  config.evaluation.datasets = ("demo_unseen",)
  config.evaluation.beta = 0.5
  return config
