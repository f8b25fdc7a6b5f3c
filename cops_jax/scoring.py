"""From probabilities and distances to anomaly maps and image scores."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from cops_jax.typing import Array, Float

NORMAL, ANOMALY = 0, 1

# The anomaly map's Gaussian filter, in pixels; scipy truncates at 4 sigma.
GAUSSIAN_SIGMA_PIXELS = 4.0
GAUSSIAN_RADIUS_PIXELS = 16


def min_max_scale(x: Float[Array, "b n"]) -> Float[Array, "b n"]:
  """Scales each row to [0, 1]; a constant row becomes 0."""
  low = x.min(axis=-1, keepdims=True)
  span = x.max(axis=-1, keepdims=True) - low
  return jnp.where(span > 0, (x - low) / jnp.where(span > 0, span, 1), 0)


def distance_weight(
  distances: Float[Array, "b s=2 n"], alpha: float
) -> Float[Array, "b n"]:
  """Weight of each patch by its distances to the prototypes.

  `alpha * scaled(d_normal) + (1 - alpha) * (1 - scaled(d_anomaly))`, scaled per
  image (the global-local weighting of CoPS section 3.4).
  """
  far_from_normal = min_max_scale(distances[:, NORMAL])
  near_anomaly = 1 - min_max_scale(distances[:, ANOMALY])
  return alpha * far_from_normal + (1 - alpha) * near_anomaly


def weighted_patch_scores(
  patch_probability: Float[Array, "b f n s=2"],
  distances: Float[Array, "b s=2 n"] | None,
  alpha: float,
) -> Float[Array, "b n"]:
  """Weighted anomaly probability of each patch, mean over feature layers.

  Without distances it is the probability itself.
  """
  scores = patch_probability[..., ANOMALY]
  if distances is not None:
    scores *= distance_weight(distances, alpha)[:, None]
  return scores.mean(axis=1)


def image_scores(
  image_logits: Float[Array, "b s=2"],
  patch_scores: Float[Array, "b n"],
  beta: float,
) -> Float[Array, "b"]:
  """`beta * anomaly probability + (1 - beta) * largest patch score`."""
  probability = jax.nn.softmax(image_logits)[:, ANOMALY]
  return beta * probability + (1 - beta) * patch_scores.max(axis=-1)


def upsampling_matrix(
  image_size: int, grid_size: int
) -> Float[np.ndarray, "h gh"]:
  """One axis of the step from patch grid to anomaly map, as a matrix.

  Nearest-neighbour upsampling, then a Gaussian filter of sigma 4 pixels as
  `scipy.ndimage.gaussian_filter` does it: edges reflected (d c b a | a b c d),
  truncated at 4 sigma.
  """
  offsets = np.arange(-GAUSSIAN_RADIUS_PIXELS, GAUSSIAN_RADIUS_PIXELS + 1)
  kernel = np.exp(-0.5 * (offsets / GAUSSIAN_SIGMA_PIXELS) ** 2)
  kernel /= kernel.sum()
  rows = np.arange(image_size)
  sources = (rows[:, None] + offsets) % (2 * image_size)
  sources = np.minimum(sources, 2 * image_size - 1 - sources)
  blur = np.zeros((image_size, image_size))
  np.add.at(blur, (rows[:, None], sources), kernel)
  nearest = np.repeat(np.eye(grid_size), image_size // grid_size, axis=0)
  return (blur @ nearest).astype(np.float32)


def anomaly_maps(
  patch_scores: Float[Array, "b n"], image_size: int
) -> Float[Array, "b h w"]:
  """Pixel maps `A p A^T` of the patch scores; `A` is `upsampling_matrix`."""
  side = round(patch_scores.shape[-1] ** 0.5)
  matrix = upsampling_matrix(image_size, side)
  grid = patch_scores.reshape(-1, side, side)
  return jnp.einsum("hg,bgk,wk->bhw", matrix, grid, matrix)
