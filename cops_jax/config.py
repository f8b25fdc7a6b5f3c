"""From a config to the model it describes."""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from cops_jax import weights
from cops_jax.errors import InputError
from cops_jax.inputs import feature_cache
from cops_jax.inputs.feature_files import FeatureCache
from cops_jax.losses import RECONSTRUCTIONS
from cops_jax.metrics import PIXEL_METRICS_MODES
from cops_jax.models.cops import CoPS
from cops_jax.models.prompts import PROTOTYPE_INJECTIONS
from cops_jax.weights import PretrainedCLIP

UNREADABLE_FILES = ("error", "skip")

_LEAST_VALUES = {
  "model.smoothing_window_patches": 1,
  "model.num_context_words": 0,
  "model.num_state_words": 0,
  "model.num_category_words": 0,
  "input.num_workers": 0,
  "train.num_epochs": 0,
  "train.batch_size": 1,
  "train.accumulate_steps": 1,
  "train.evaluate_every_steps": 0,
  "train.log_every_steps": 1,
  "train.checkpoint_every_steps": 1,
  "train.num_kept_checkpoints": 1,
  "evaluation.batch_size": 1,
  "evaluation.num_samples": 1,
  "evaluation.num_pictures": 0,
}


def load_clip(config: Any) -> PretrainedCLIP:
  """The CLIP that a config names; see `weights.load_clip`."""
  clip = config.clip
  return weights.load_clip(clip.weights, clip.revision, clip.sha256)


def load_examples(
  config: Any, name: str, split: str
) -> Sequence[Mapping[str, Any]]:
  """`datasets.load` from where a config says that data lie."""
  from cops_jax import datasets

  return datasets.load(
    name, split, config.data_dir or None, config.manual_dir or None
  )


def open_features(
  config: Any,
  examples: Sequence[Mapping[str, Any]],
  split: str,
  model: CoPS,
  clip: PretrainedCLIP,
  mesh: Mesh,
  *,
  batch_size: int,
  skipped: MutableMapping[str, str] | None,
) -> FeatureCache | None:
  """A data set's cached features, computed as far as they are missing.

  Arguments and errors as in `feature_cache.open_features`.

  Returns:
    None if the config wants no cache.
  """
  dtype = config.train.cache_features
  if dtype == "none":
    return None
  return feature_cache.open_features(
    examples,
    split,
    model,
    clip,
    mesh,
    feature_cache.CacheOptions(
      dtype=dtype,
      folder=config.features_dir
      or feature_cache.default_folder(config.data_dir or None),
      image_size=config.model.image_size_pixels,
      batch_size=batch_size,
      split_clip=config.clip.split_over_devices,
      num_workers=config.input.num_workers,
    ),
    skipped,
  )


def build_model(config: Any, clip: PretrainedCLIP) -> CoPS:
  """The model that a config describes, on a loaded CLIP.

  Raises:
    InputError: a field's value does not fit CLIP or another field.
  """
  model, vision = config.model, clip.config.vision_config
  num_layers = vision.num_hidden_layers
  width = clip.config.projection_dim
  text_layers = clip.config.text_config.num_hidden_layers
  num_words = (
    model.num_context_words + model.num_state_words + model.num_category_words
  )

  def check(condition, field, value, expected):
    if not condition:
      raise InputError(
        f"config.{field} is {value!r}; with CLIP {config.clip.weights!r} it"
        f" must be {expected}"
      )

  for field, least in _LEAST_VALUES.items():
    section, name = field.split(".")
    number = config[section][name]
    check(number >= least, field, number, f"at least {least}")
  check(
    model.image_size_pixels > 0
    and model.image_size_pixels % vision.patch_size == 0,
    "model.image_size_pixels",
    model.image_size_pixels,
    f"a multiple of the patch size {vision.patch_size}",
  )
  check(
    model.feature_layers
    and all(
      isinstance(layer, int) and 1 <= layer <= num_layers
      for layer in model.feature_layers
    ),
    "model.feature_layers",
    tuple(model.feature_layers),
    f"whole numbers from 1 to {num_layers}",
  )
  check(0 <= config.seed < 2**32, "seed", config.seed, "from 0 to 2**32 - 1")
  check(
    0 < model.temperature < math.inf,
    "model.temperature",
    model.temperature,
    "above 0",
  )
  for name, low, high in (
    ("learning_rate", 0, math.inf),
    ("b1", 0, 1),
    ("b2", 0, 1),
    ("eps", 1e-30, 1),
  ):
    check(
      low <= config.train[name] < high,
      f"train.{name}",
      config.train[name],
      f"from {low} to below {high}",
    )
  check(
    0 <= model.num_value_layers <= num_layers,
    "model.num_value_layers",
    model.num_value_layers,
    f"from 0 to {num_layers}",
  )
  check(
    model.smoothing_window_patches % 2 == 1,
    "model.smoothing_window_patches",
    model.smoothing_window_patches,
    "odd",
  )
  check(
    not model.num_state_words
    or (model.num_heads > 0 and width % model.num_heads == 0),
    "model.num_heads",
    model.num_heads,
    f"a divisor of the joint width {width}",
  )
  check(
    num_words > 0,
    "model.num_context_words",
    model.num_context_words,
    "at least 1 where there are neither state nor category words",
  )
  check(
    0 <= model.deep_prompt_depth < text_layers,
    "model.deep_prompt_depth",
    model.deep_prompt_depth,
    f"less than the {text_layers} text layers",
  )
  check(
    0 <= model.deep_prompt_length <= num_words,
    "model.deep_prompt_length",
    model.deep_prompt_length,
    f"at most the {num_words} learned words",
  )
  check(
    model.prototype_injection in PROTOTYPE_INJECTIONS,
    "model.prototype_injection",
    model.prototype_injection,
    f"one of {', '.join(PROTOTYPE_INJECTIONS)}",
  )
  check(
    config.input.unreadable_files in UNREADABLE_FILES,
    "input.unreadable_files",
    config.input.unreadable_files,
    f"one of {', '.join(UNREADABLE_FILES)}",
  )
  check(
    config.train.reconstruction in RECONSTRUCTIONS,
    "train.reconstruction",
    config.train.reconstruction,
    f"one of {', '.join(RECONSTRUCTIONS)}",
  )
  check(
    config.train.cache_features in feature_cache.STORAGE_TYPES,
    "train.cache_features",
    config.train.cache_features,
    f"one of {', '.join(feature_cache.STORAGE_TYPES)}",
  )
  check(
    config.evaluation.pixel_metrics in PIXEL_METRICS_MODES,
    "evaluation.pixel_metrics",
    config.evaluation.pixel_metrics,
    f"one of {', '.join(PIXEL_METRICS_MODES)}",
  )
  check(
    config.clip.dtype in ("float32", "bfloat16"),
    "clip.dtype",
    config.clip.dtype,
    "float32 or bfloat16",
  )
  tokens = clip.tokens
  suffix = (tokens.period, tokens.end)
  if not model.num_category_words:
    suffix = (tokens.object, *suffix)
  return CoPS(
    clip_config=clip.config,
    prefix_tokens=(tokens.start,),
    suffix_tokens=suffix,
    feature_layers=tuple(model.feature_layers),
    num_value_layers=model.num_value_layers,
    smoothing_window=model.smoothing_window_patches,
    num_heads=model.num_heads,
    num_context_words=model.num_context_words,
    num_state_words=model.num_state_words,
    num_category_words=model.num_category_words,
    deep_prompt_length=model.deep_prompt_length,
    deep_prompt_depth=model.deep_prompt_depth,
    prototype_injection=model.prototype_injection,
    temperature=model.temperature,
    dtype=jnp.dtype(config.clip.dtype),
  )
