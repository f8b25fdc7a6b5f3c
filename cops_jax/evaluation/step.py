"""The compiled step from a batch to its scores and maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, Sharding

from cops_jax import methods, scoring
from cops_jax.config import default
from cops_jax.models.encoding import ENCODE_FIELDS, encode_batch, join_params
from cops_jax.runtime.mesh import jit_step
from cops_jax.runtime.randomness import (
  EVALUATION_KEY,
  example_noise,
  random_key,
)

# Fields of a batch that a predicting step reads.
STEP_FIELDS = (*ENCODE_FIELDS, "example_id", "text_features")

# From trainable parameters, CLIP's and a batch to scores and maps.
PredictStep = Callable[
  [Mapping[str, Any], Mapping[str, Any], Mapping[str, jax.Array]],
  dict[str, jax.Array],
]


def detect_anomalies(
  config: Any,
  model: nn.Module,
  variables: Mapping[str, Any],
  batch: Mapping[str, jax.Array],
) -> dict[str, jax.Array]:
  """Scores and maps of a batch.

  Args:
    config: a ConfigDict with the fields of `cops_jax.config`.
    model, variables: of the config's method.
    batch: what `encode_batch` takes; and noise (b, z, d), standard normal, if
      the method needs it.

  Returns:
    image_score (b,) and anomaly_map (b, h, w), float32 in [0, 1].
  """
  method = methods.find(config.method)
  features = encode_batch(model, variables, batch)
  patch_size = model.clip_config.vision_config.patch_size
  image_size = round(features[1].shape[2] ** 0.5) * patch_size
  image_scores, patch_scores = method.score(
    config, model, variables, features, batch
  )
  return {
    "image_score": image_scores,
    "anomaly_map": scoring.anomaly_maps(
      patch_scores, image_size, method.UPSAMPLING
    ),
  }


def make_configured_step(
  config: Any,
  model: nn.Module,
  mesh: Mesh,
  clip_shardings: Sharding | Mapping[str, Any] | None = None,
) -> PredictStep:
  """Compiles the step from a batch to its scores and maps.

  Args:
    config: a ConfigDict with the fields of `cops_jax.config`; its seed is that
      of the noise, which each example's id keys.
    model: of the config's method.
    mesh: to split batches over.
    clip_shardings: of CLIP's parameters; None if every device has a copy.

  Returns:
    `step(trainable, clip_params, batch)`, giving image_score (b,) and
    anomaly_map (b, h, w), float32 in [0, 1]. A batch has example_id and image,
    or what `encode_batch` takes instead.
  """
  key = random_key(config.seed, EVALUATION_KEY)
  width = model.clip_config.projection_dim
  num_samples = methods.find(config.method).num_noise_samples(
    config, is_training=False
  )

  def predict_step(trainable, clip_params, batch):
    if num_samples:
      noise = example_noise(key, batch["example_id"], num_samples, width)
      batch = {**batch, "noise": noise}
    variables = join_params(trainable, clip_params)
    return detect_anomalies(config, model, variables, batch)

  return jit_step(predict_step, mesh, clip_shardings)


def make_predict_step(
  model: nn.Module,
  mesh: Mesh,
  *,
  seed: int,
  clip_shardings: Sharding | Mapping[str, Any] | None = None,
  **settings: Any,
) -> PredictStep:
  """`make_configured_step` of CoPS, without a config.

  Args:
    model: CoPS.
    mesh, clip_shardings: see `make_configured_step`.
    seed: of the noise.
    **settings: num_samples, alpha, beta and distance_weighting of
      config.evaluation; those of `config.default()` where absent.
  """
  config = default()
  config.seed = seed
  config.evaluation.update(settings)
  config.model.num_category_words = model.num_category_words
  return make_configured_step(config, model, mesh, clip_shardings)
