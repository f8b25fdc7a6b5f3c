"""The compiled step from a batch to its scores and maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, Sharding

from cops_jax import scoring
from cops_jax.clip.features import ENCODE_FIELDS, encode_batch, join_params
from cops_jax.images import tiles
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
  model: nn.Module,
  variables: Mapping[str, Any],
  batch: Mapping[str, jax.Array],
) -> dict[str, jax.Array]:
  """Returns scores and maps of a batch.

  Args:
    model, variables: a method's.
    batch: what `encode_batch` takes; and noise (b, z, d), standard normal, if
      the method needs it.

  Returns:
    image_score (b,) and anomaly_map (b, h, w), float32 in [0, 1].
  """
  features = encode_batch(model, variables, batch)
  patch_size = model.clip.config.vision_config.patch_size
  image_size = round(features[1].shape[2] ** 0.5) * patch_size
  image_scores, patch_scores = model.apply(
    variables, features, batch, method="score"
  )
  return {
    "image_score": image_scores,
    "anomaly_map": scoring.anomaly_maps(
      patch_scores, image_size, model.upsampling
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


def make_predict_step(
  model: nn.Module,
  mesh: Mesh,
  clip_shardings: Sharding | Mapping[str, Any] | None = None,
) -> PredictStep:
  """Compiles the step from a batch to its scores and maps.

  Args:
    model: a method's; its config's seed is that of the noise, which each
      example's id keys.
    mesh: to split batches over.
    clip_shardings: of CLIP's parameters; None if every device has a copy.

  Returns:
    `step(trainable, clip_params, batch)`, giving image_score (b,) and
    anomaly_map (b, h, w), float32 in [0, 1]. A batch has example_id and image,
    or what `encode_batch` takes instead. With an image it may have tiles, uint8
    (b, t, h, w, 3), by the config's tiles; a tile's noise is its image's.
  """
  config = model.config
  key = random_key(config.seed, EVALUATION_KEY)
  width = model.clip.config.projection_dim
  num_samples = model.num_noise_samples(is_training=False)

  def predict_step(trainable, clip_params, batch):
    if num_samples:
      noise = example_noise(key, batch["example_id"], num_samples, width)
      batch = {**batch, "noise": noise}
    variables = join_params(trainable, clip_params)

    def detect(images):
      rows = {**batch, "image": images}
      return detect_anomalies(model, variables, rows)

    if "tiles" not in batch:
      return detect_anomalies(model, variables, batch)
    grid = tiles.parse_grid(config.evaluation.tiles)
    return detect_with_tiles(detect, batch["image"], batch["tiles"], grid)

  return jit_step(predict_step, mesh, clip_shardings)
