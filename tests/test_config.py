"""Configs that exist, and values that do not fit."""

import importlib

import pytest

from cops_jax import weights
from cops_jax.errors import InputError
from cops_jax.weights import build_model


@pytest.fixture(scope="module")
def clip(clip_folder):
  return weights.load_clip(str(clip_folder))


def test_a_config_becomes_a_model(config, clip):
  model = build_model(config, clip)
  assert model.suffix_tokens == (clip.tokens.period, clip.tokens.end)
  config.model.num_category_words = 0
  model = build_model(config, clip)
  assert model.suffix_tokens[0] == clip.tokens.object


@pytest.mark.parametrize(
  "field, value, expected",
  (
    ("model.image_size_pixels", 50, "a multiple of the patch size 16"),
    ("model.feature_layers", (4,), "numbers from 1 to 3"),
    ("model.feature_layers", (), "numbers from 1 to 3"),
    ("model.num_value_layers", 4, "from 0 to 3"),
    ("model.smoothing_window_patches", 2, "odd"),
    ("model.num_heads", 5, "a divisor of the joint width 24"),
    ("model.deep_prompt_depth", 3, "less than the 3 text layers"),
    ("model.smoothing_window_patches", -1, "at least 1"),
    ("model.num_state_words", -1, "at least 0"),
    ("model.num_category_words", -2, "at least 0"),
    ("model.prototype_injection", "both", "one of crossed, matched"),
    ("train.reconstruction", "all", "one of pairwise, matched, none"),
    ("train.batch_size", 0, "at least 1"),
    ("train.num_epochs", -1, "at least 0"),
    ("evaluation.num_samples", 0, "at least 1"),
    ("clip.dtype", "float16", "float32 or bfloat16"),
  ),
)
def test_values_that_do_not_fit(config, clip, field, value, expected):
  config.update_from_flattened_dict({field: value})
  with pytest.raises(InputError) as caught:
    build_model(config, clip)
  assert f"config.{field} is {value!r}" in str(caught.value)
  assert expected in str(caught.value)


def test_a_prompt_needs_words(config, clip):
  for kind in ("context", "state", "category"):
    build_model(config, clip)
    config.model[f"num_{kind}_words"] = 0
    config.model.deep_prompt_length = 2
  with pytest.raises(InputError, match="num_context_words is 0.* at least 1"):
    build_model(config, clip)


def test_heads_matter_to_prototypes_alone(config, clip):
  config.model.num_heads = 5
  config.model.num_state_words = 0
  assert build_model(config, clip).num_state_words == 0


@pytest.mark.parametrize(
  "name", ("default", "visa", "mvtec", "demo", "ablations")
)
def test_configs_have_the_same_fields(name):
  default = importlib.import_module("configs.default").get_config()
  config = importlib.import_module(f"configs.{name}").get_config()
  assert config.is_locked
  assert _fields(config) == _fields(default)


def _fields(config):
  return [
    (section, tuple(value) if hasattr(value, "keys") else type(value))
    for section, value in config.items()
  ]


def test_published_recipes():
  """Window, alpha, beta, epochs and reconstruction of the paper's code."""
  rows = {
    name: importlib.import_module(f"configs.{name}").get_config()
    for name in ("visa", "mvtec")
  }
  assert [
    (
      config.model.smoothing_window_patches,
      config.evaluation.alpha,
      config.evaluation.beta,
      config.train.num_epochs,
      config.train.batch_size,
      config.train.reconstruction,
      config.train.b1,
    )
    for config in rows.values()
  ] == [
    (5, 0.26, 0.9, 10, 8, "none", 0.5),
    (3, 0.35, 1.0, 5, 8, "pairwise", 0.5),
  ]
