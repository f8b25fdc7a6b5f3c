"""The compiled step from a batch to its scores and maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, Sharding

from cops_jax import methods, scoring
from cops_jax.config import default
from cops_jax.images import tiles
from cops_jax.models.encoding import ENCODE_FIELDS, encode_batch, join_params
from cops_jax.runtime.mesh import jit_step
from cops_jax.runtime.randomness import (
  EVALUATION_KEY,
  example_noise,
  random_key,
)
from cops_jax.typing import Array, Integer

# Fields of a batch that a predicting step reads.
STEP_FIELDS = (*ENCODE_FIELDS, "tiles", "example_id", "text_features")

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


def detect_with_tiles(
  detect: Callable[[Array], Mapping[str, Array]],
  images: Integer[Array, "b h w 3"],
  parts: Integer[Array, "b t h w 3"],
  grid: tuple[int, int],
) -> dict[str, jax.Array]:
  """Scores and maps of images and their tiles, combined by `images.tiles`.

  Tiles come one after the other, for all images at a time: they need no more
  memory than the images do.

  Args:
    detect: from images to their scores and maps, as `detect_anomalies` gives
      them.
    images: whole.
    parts: their tiles, row by row.
    grid: rows and columns.
  """
  size = images.shape[1]
  down, across = (
    jnp.asarray(tiles.blending_matrices(number, size, size)) for number in grid
  )
  whole = detect(images)

  def add(found, tile):
    place, pixels = tile
    highest, blended = found
    outputs = detect(pixels)
    row, column = place // grid[1], place % grid[1]
    blended += jnp.einsum(
      "hg,bgk,wk->bhw", down[row], outputs["anomaly_map"], across[column]
    )
    return (jnp.maximum(highest, outputs["image_score"]), blended), None

  nothing = jax.tree.map(
    jnp.zeros_like, (whole["image_score"], whole["anomaly_map"])
  )
  (highest, blended), _ = jax.lax.scan(
    add, nothing, (jnp.arange(parts.shape[1]), parts.swapaxes(0, 1))
  )
  return {
    "image_score": tiles.combine(whole["image_score"], highest),
    "anomaly_map": tiles.combine(whole["anomaly_map"], blended),
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
    or what `encode_batch` takes instead. With an image it may have tiles, uint8
    (b, t, h, w, 3), by config.evaluation.tiles; a tile's noise is its image's.
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

    def detect(images):
      rows = {**batch, "image": images}
      return detect_anomalies(config, model, variables, rows)

    if "tiles" not in batch:
      return detect_anomalies(config, model, variables, batch)
    grid = tiles.parse_grid(config.evaluation.tiles)
    return detect_with_tiles(detect, batch["image"], batch["tiles"], grid)

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
