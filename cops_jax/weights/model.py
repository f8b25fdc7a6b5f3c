"""The CLIP that a config names, and the model that it describes on it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, Sharding

from cops_jax.config import check_values
from cops_jax.models.attention import require_implementation
from cops_jax.models.clip import cast_matrices
from cops_jax.models.cops import CoPS
from cops_jax.runs.record import Record
from cops_jax.runtime.mesh import clip_shardings
from cops_jax.weights.clip import PretrainedCLIP, load_clip

_logger = logging.getLogger(__name__)


def settle_dtype(config: Any, record: Record | None) -> Any:
  """A copy of a config whose clip.dtype is a type.

  Args:
    config: a ConfigDict with the fields of `cops_jax.config`.
    record: of the run, whose type "auto" becomes; None for a new run, where it
      becomes bfloat16, or on CPU float32.
  """
  config = config.copy_and_resolve_references()
  if config.clip.dtype == "auto":
    recorded = record.config.get("clip", {}).get("dtype") if record else None
    config.clip.dtype = recorded or _fast_dtype()
    _logger.info(
      "CLIP computes in %s, as %s",
      config.clip.dtype,
      "the run does" if recorded else f"is fast on {jax.default_backend()}",
    )
  return config


def _fast_dtype():
  # x86 without AMX emulates bfloat16.
  return "float32" if jax.default_backend() == "cpu" else "bfloat16"


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
    InputError: a field's value does not fit CLIP, another field or this
      machine.
  """
  check_values(config, clip.config)
  dtype = config.clip.dtype
  if dtype == "auto":
    dtype = _fast_dtype()
  require_implementation(config.clip.attention, dtype)
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
    dtype=jnp.dtype(dtype),
    attention=config.clip.attention,
  )


def place_clip(
  clip: PretrainedCLIP, model: CoPS, mesh: Mesh, is_split: bool
) -> tuple[Mapping[str, Any], Sharding | Mapping[str, Any]]:
  """CLIP's parameters on the devices, and how these hold them.

  Args:
    clip: that the model is built on.
    model: whose type the matrices get, see `cast_matrices`.
    mesh: of the devices.
    is_split: see `mesh.clip_shardings`.
  """
  params = cast_matrices(clip.params, model.dtype)
  shardings = clip_shardings(params, mesh, is_split)
  return jax.device_put(params, shardings), shardings
