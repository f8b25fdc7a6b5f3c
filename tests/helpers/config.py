"""A config for quick tests."""


def make_config(clip_folder, data_dir, recipe="demo"):
  """A recipe of the demo on the random CLIP: an epoch is nine steps."""
  from cops_jax import config as configuration  # conftest imports this file.

  config = configuration.recipe(recipe)
  config.data_dir = data_dir
  config.clip.weights = str(clip_folder)
  config.feature_cache.dtype = "none"
  config.model.image_size_pixels = 48
  config.model.feature_layers = (2, 3)
  config.model.num_value_layers = 2
  if recipe == "demo":
    config.model.num_heads = 4
  if recipe in ("demo", "anomalyclip_demo"):
    config.model.deep_prompt_depth = 2
  config.train.num_epochs = 1
  config.train.batch_size = 64
  config.train.log_every_steps = 2
  config.train.checkpoint_every_steps = 4
  config.evaluation.batch_size = 100
  return config
