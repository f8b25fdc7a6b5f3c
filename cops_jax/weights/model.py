"""Builds the model that a config describes, and loads its trained prompts."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, Sharding

from cops_jax import methods
from cops_jax.backbones.attention import require_implementation
from cops_jax.backbones.clip import CLIP
from cops_jax.backbones.dino import DINO
from cops_jax.backbones.vision import cast_matrices
from cops_jax.config import check_values
from cops_jax.files import is_file
from cops_jax.runs.record import Record
from cops_jax.runtime.mesh import backbone_shardings
from cops_jax.weights import prompts
from cops_jax.weights.backbone import PretrainedBackbone

_logger = logging.getLogger(__name__)


def choose_dtype(config: Any, record: Record | None) -> Any:
  """Returns a copy of a config with backbone.dtype "auto" replaced.

  The dtype in the run's record replaces "auto". Without a record or a dtype in
  it, float32 replaces "auto" on CPU, and bfloat16 on other platforms.
  """
  config = config.copy_and_resolve_references()
  if config.backbone.dtype == "auto":
    recorded = (
      record.config.get("backbone", {}).get("dtype") if record else None
    )
    config.backbone.dtype = recorded or _fast_dtype()
    _logger.info(
      "the backbone computes in %s, %s",
      config.backbone.dtype,
      "as in the run" if recorded else f"fast on {jax.default_backend()}",
    )
  return config


def _fast_dtype():
  # x86 without AMX emulates bfloat16.
  return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def build_model(
  config: Any, backbone: PretrainedBackbone, platform: str = ""
) -> nn.Module:
  """Builds the model that a config describes, on a loaded backbone.

  Args:
    config: ConfigDict with the fields of `cops_jax.config`.
    backbone: backbone from `load_backbone` or `load_clip`.
    platform: platform of the compiled programs: cpu, cuda or tpu. An empty
      string means the platform of this machine.

  Raises:
    InputError: if a field's value does not fit the backbone, another field or
      this machine.
  """
  import ml_collections  # The core's requirements do not include it.

  check_values(config, backbone.config)
  dtype = config.backbone.dtype
  dtype = _fast_dtype() if dtype == "auto" else dtype
  require_implementation(config.backbone.attention, dtype)
  arguments = jnp.dtype(dtype), config.backbone.attention, platform
  if config.backbone.kind == "clip":
    projection = config.backbone.clip_projection
    tower = CLIP(backbone.config, *arguments, has_projection=projection)
  else:
    tower = DINO(backbone.config, *arguments)
  return methods.find(config.method).build_model(
    ml_collections.FrozenConfigDict(config), tower, backbone
  )


def trainable_shapes(
  model: nn.Module, backbone: PretrainedBackbone, sharding: Sharding
) -> Mapping[str, Any]:
  """Returns the shapes and dtypes of a model's trainable tree."""
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    jax.eval_shape(
      lambda params: model.init_trainable(jax.random.key(0), params),
      backbone.params,
    ),
  )


def load_trainable(
  config: Any,
  model: nn.Module,
  backbone: PretrainedBackbone,
  path: str | os.PathLike,
  sharding: Sharding,
) -> tuple[Mapping[str, Any], str]:
  """Returns trained prompts, and their source in words.

  A method that trains nothing computes its parameters, unless a file has them.

  Args:
    config: ConfigDict with the fields of `cops_jax.config`.
    model: model from `build_model`.
    backbone: backbone from `load_backbone`.
    path: run directory or file, see `prompts.load_prompts`.
    sharding: sharding of a checkpoint's leaves.

  Raises:
    InputError: if the prompts cannot be loaded.
  """
  method = methods.find(config.method)
  if not method.IS_TRAINED and not is_file(path):
    tree = model.init_trainable(jax.random.key(0), backbone.params)
    return tree, f"the {method.TITLE.lower()}, which is not trained"
  template = trainable_shapes(model, backbone, sharding)
  return prompts.load_prompts(path, template, config.method)


def place_backbone(
  backbone: PretrainedBackbone, model: nn.Module, mesh: Mesh, is_split: bool
) -> tuple[Mapping[str, Any], Sharding | Mapping[str, Any]]:
  """Returns the backbone's parameters on the devices, and their shardings.

  Matrices are cast to the model's dtype. See `backbone_shardings` for
  `is_split`.
  """
  params = cast_matrices(backbone.params, model.backbone.dtype)
  shardings = backbone_shardings(params, mesh, is_split)
  return jax.device_put(params, shardings), shardings
