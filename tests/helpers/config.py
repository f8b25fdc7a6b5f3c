"""Configs for quick tests."""


def small_fields(clip_folder, data_dir, method="cops"):
  """Returns a method's fields, by name, for quick runs of the random CLIP."""
  from cops_jax import methods  # conftest imports this file.

  fields = {
    "data_dir": str(data_dir),
    "backbone.kind": "clip",
    "backbone.weights": str(clip_folder),
    "feature_cache.dtype": "none",
    "model.image_size_pixels": 48,
    "model.feature_layers": (2, 3),
    "model.num_value_layers": 2 if methods.find(method).USES_TEXT else 0,
    "model.num_heads": 4,
    "model.deep_prompt_depth": 2,
    "train.num_epochs": 1,
    "train.batch_size": 64,
    "train.log_every_steps": 2,
    "train.checkpoint_every_steps": 4,
    "evaluation.batch_size": 100,
  }
  unread = methods.unread_fields(method)
  return {name: fields[name] for name in fields if name not in unread}


def make_config(clip_folder, data_dir, recipe="demo"):
  """Returns a demo recipe on the random CLIP with nine steps an epoch."""
  from cops_jax import config as configuration  # conftest imports this file.

  config = configuration.recipe(recipe)
  fields = small_fields(clip_folder, data_dir, config.method)
  config.update_from_flattened_dict(fields)
  return config
