"""The step from a batch to its scores and anomaly maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, Sharding

from cops_jax import scoring
from cops_jax.backbones.features import (
  BACKBONE_PARAMS,
  ENCODE_FIELDS,
  encode_batch,
  join_params,
)
from cops_jax.backbones.vision import sizes_of
from cops_jax.runtime.mesh import jit_step

# Subtree of the trainable parameters with the reference images' patches.
MEMORY = "memory"

# Fields of a batch that the step reads.
STEP_FIELDS = (*ENCODE_FIELDS, "text_features")


def detect_anomalies(
  model: nn.Module,
  variables: Mapping[str, Any],
  batch: Mapping[str, jax.Array],
) -> dict[str, jax.Array]:
  """Returns scores and anomaly maps of a batch.

  Args:
    model: model of a method.
    variables: the model's variables. The subtree "memory" contains the patches
      of reference images, if any; see `normal_images.make_memory_step`.
    batch: inputs of `encode_batch`.

  Returns:
    image_score (b,) and anomaly_map (b, h, w), float32 in [0, 1].
  """
  backbone_params = variables["params"][BACKBONE_PARAMS]
  features = encode_batch(model, backbone_params, batch)
  patch_size = sizes_of(model.backbone.config).patch_size
  image_size = round(features[1].shape[2] ** 0.5) * patch_size
  if MEMORY in variables["params"]:
    memory = variables["params"][MEMORY]["patches"]
    distances = scoring.memory_distances(features[1], memory)
    batch = {**batch, "memory_distances": distances}
  image_scores, patch_scores = model.apply(
    variables, features, batch, method="score"
  )
  return {
    "image_score": image_scores,
    "anomaly_map": scoring.anomaly_maps(
      patch_scores,
      image_size,
      model.upsampling,
      model.config.evaluation.blur_sigma_pixels,
    ),
  }


def make_predict_step(
  model: nn.Module,
  mesh: Mesh,
  backbone_shardings: Sharding | Mapping[str, Any] | None = None,
) -> Callable[..., dict[str, jax.Array]]:
  """Returns `detect_anomalies` as a compiled step.

  Args:
    model: model of a method.
    mesh: devices that batches are split over.
    backbone_shardings: shardings of the backbone; None if it is replicated.

  Returns:
    `step(trainable, backbone_params, batch)`, which returns image_score (b,)
    and anomaly_map (b, h, w), float32 in [0, 1].
  """

  def predict_step(trainable, backbone_params, batch):
    variables = join_params(trainable, backbone_params)
    return detect_anomalies(model, variables, batch)

  return jit_step(predict_step, mesh, backbone_shardings)
