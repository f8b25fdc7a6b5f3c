"""The CLIP that a config names, and the model that it describes on it."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from cops_jax.config import check_values
from cops_jax.models.cops import CoPS
from cops_jax.weights.clip import PretrainedCLIP, load_clip


def clip_of(config: Any) -> PretrainedCLIP:
  """`load_clip` of what a config names.

  Args:
    config: a ConfigDict with the fields of `cops_jax.config`.

  Raises:
    InputError: see `load_clip`.
  """
  clip = config.clip
  return load_clip(clip.weights, clip.revision, clip.sha256)


def build_model(config: Any, clip: PretrainedCLIP) -> CoPS:
  """The model that a config describes, on a loaded CLIP.

  Args:
    config: a ConfigDict with the fields of `cops_jax.config`.
    clip: from `clip_of` or `load_clip`.

  Raises:
    InputError: a field's value does not fit CLIP or another field.
  """
  check_values(config, clip.config)
  model, tokens = config.model, clip.tokens
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
