"""The compiled step from a batch to its scores and maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, Sharding

from cops_jax import scoring
from cops_jax.models.cops import (
  ENCODE_FIELDS,
  CoPS,
  encode_batch,
  join_params,
)
from cops_jax.runtime.mesh import jit_step
from cops_jax.runtime.randomness import (
  EVALUATION_KEY,
  example_noise,
  random_key,
)
from cops_jax.typing import Array, Float

# Fields of a batch that a predicting step reads.
STEP_FIELDS = (*ENCODE_FIELDS, "example_id")

# From trainable parameters, CLIP's and a batch to scores and maps.
PredictStep = Callable[
  [Mapping[str, Any], Mapping[str, Any], Mapping[str, jax.Array]],
  dict[str, jax.Array],
]


def detect_anomalies(
  model: CoPS,
  variables: Mapping[str, Any],
  batch: Mapping[str, jax.Array],
  noise: Float[Array, "b z d"] | None,
  *,
  alpha: float,
  beta: float,
  distance_weighting: bool,
) -> dict[str, jax.Array]:
  """Scores and maps of a batch.

  Args:
    model, variables: CoPS.
    batch: what `encode_batch` takes.
    noise: the category codes; None without category words.
    alpha, beta: see `cops_jax.scoring`.
    distance_weighting: whether patches are weighted by their distances to the
      prototypes, if there are any.

  Returns:
    image_score (b,) and anomaly_map (b, h, w), float32 in [0, 1].
  """
  features = encode_batch(model, variables, batch)
  patch_size = model.clip_config.vision_config.patch_size
  image_size = round(features[1].shape[2] ** 0.5) * patch_size
  outputs = model.apply(variables, *features, noise, is_training=False)
  patch_scores = scoring.weighted_patch_scores(
    outputs.patch_probability,
    outputs.distances if distance_weighting else None,
    alpha,
  )
  return {
    "image_score": scoring.image_scores(
      outputs.image_logits, patch_scores, beta
    ),
    "anomaly_map": scoring.anomaly_maps(patch_scores, image_size),
  }


def make_predict_step(
  model: CoPS,
  mesh: Mesh,
  *,
  seed: int,
  num_samples: int,
  alpha: float,
  beta: float,
  distance_weighting: bool = True,
  clip_shardings: Sharding | Mapping[str, Any] | None = None,
) -> PredictStep:
  """Compiles the step from a batch to its scores and maps.

  Args:
    model: CoPS.
    mesh: to split batches over.
    seed: of the category codes' noise, which each example's id keys.
    num_samples: codes for an image.
    alpha, beta, distance_weighting: see `detect_anomalies`.
    clip_shardings: of CLIP's parameters; None if every device has a copy.

  Returns:
    `step(trainable, clip_params, batch)`, giving image_score (b,) and
    anomaly_map (b, h, w), float32 in [0, 1]. A batch has example_id and image,
    or what `encode_batch` takes instead.
  """
  key = random_key(seed, EVALUATION_KEY)
  width = model.clip_config.projection_dim

  def predict_step(trainable, clip_params, batch):
    noise = None
    if model.num_category_words:
      noise = example_noise(key, batch["example_id"], num_samples, width)
    return detect_anomalies(
      model,
      join_params(trainable, clip_params),
      batch,
      noise,
      alpha=alpha,
      beta=beta,
      distance_weighting=distance_weighting,
    )

  return jit_step(predict_step, mesh, clip_shardings)


def make_configured_step(
  config: Any,
  model: CoPS,
  mesh: Mesh,
  clip_shardings: Sharding | Mapping[str, Any] | None = None,
) -> PredictStep:
  """`make_predict_step`, with the values of a config."""
  settings = config.evaluation
  return make_predict_step(
    model,
    mesh,
    seed=config.seed,
    num_samples=settings.num_samples,
    alpha=settings.alpha,
    beta=settings.beta,
    distance_weighting=settings.distance_weighting,
    clip_shardings=clip_shardings,
  )
