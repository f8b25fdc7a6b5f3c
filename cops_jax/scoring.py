"""Image scores and anomaly maps from features, as pure functions on arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from cops_jax.typing import Array, Float

NORMAL, ANOMALY = 0, 1

_TRUNCATE_SIGMAS = 4.0  # Radius of the Gaussian filter; scipy's default.

# Share of the image probability in an image score with reference images, for
# methods whose image score is the image probability without them.
MEMORY_BETA = 0.5


def normalize(x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
  """Returns vectors, L2-normalised along the last axis."""
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def smooth_patches(
  patches: Float[Array, "b f n d"], window: int
) -> Float[Array, "b f n d"]:
  """Averages each patch with its neighbours in a square window.

  This is the spatial part of CoPS's alignment. Zeros pad the grid, and they
  count: the divisor is always window**2.
  """
  if window == 1:
    return patches
  side = round(patches.shape[2] ** 0.5)
  sums = jax.lax.reduce_window(
    patches.reshape(-1, side, side, patches.shape[-1]),
    0.0,
    jax.lax.add,
    (1, window, window, 1),
    (1, 1, 1, 1),
    "SAME",
  )
  return (sums / window**2).reshape(patches.shape)


def prototype_distances(
  patches: Float[Array, "b n d"], prototypes: Float[Array, "b s k d"]
) -> Float[Array, "b s n"]:
  """Returns each patch's cosine distance to each state's nearest prototype."""
  cosine = jnp.einsum(
    "bnd,bskd->bsnk", normalize(patches), normalize(prototypes)
  )
  return (1 - cosine).min(axis=-1)


def text_logits(
  image_features: Float[Array, "b d"],
  patch_features: Float[Array, "b f n d"],
  text_features: Float[Array, "*_b s=2 d"],
  temperature: float,
) -> tuple[Float[Array, "b s=2"], Float[Array, "b f n s=2"]]:
  """Returns `cosine / temperature` of images and of patches with both texts.

  Args:
    image_features, patch_features: features; this function L2-normalises them.
    text_features: L2-normalised features of each image, or, with shape (2, d),
      of all images.
    temperature: divisor of the cosines.
  """
  shape = (image_features.shape[0], *text_features.shape[-2:])
  text_features = jnp.broadcast_to(text_features, shape)
  return tuple(
    jnp.einsum("b...d,bsd->b...s", normalize(features), text_features)
    / temperature
    for features in (image_features, patch_features)
  )


def min_max_scale(x: Float[Array, "b n"]) -> Float[Array, "b n"]:
  """Scales each row to [0, 1]; a constant row becomes 0."""
  low = x.min(axis=-1, keepdims=True)
  span = x.max(axis=-1, keepdims=True) - low
  return jnp.where(span > 0, (x - low) / jnp.where(span > 0, span, 1), 0)


def distance_weight(
  distances: Float[Array, "b s=2 n"], alpha: float
) -> Float[Array, "b n"]:
  """Returns the weight of each patch, from its distances to the prototypes.

  The weight is `alpha * scaled(d_normal) + (1 - alpha) * (1 -
  scaled(d_anomaly))`, min-max scaled per image (the global-local weighting of
  CoPS, section 3.4).
  """
  far_from_normal = min_max_scale(distances[:, NORMAL])
  near_anomaly = 1 - min_max_scale(distances[:, ANOMALY])
  return alpha * far_from_normal + (1 - alpha) * near_anomaly


def weighted_patch_scores(
  patch_probability: Float[Array, "b f n s=2"],
  distances: Float[Array, "b s=2 n"] | None,
  alpha: float,
) -> Float[Array, "b n"]:
  """Returns each patch's weighted anomaly probability, averaged over layers.

  Without distances, the weight is 1.
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
  """Returns `beta * anomaly probability + (1 - beta) * largest patch score`."""
  probability = jax.nn.softmax(image_logits)[:, ANOMALY]
  return beta * probability + (1 - beta) * patch_scores.max(axis=-1)


def probabilities(
  image_logits: Float[Array, "b s=2"],
  patch_logits: Float[Array, "b f n s=2"],
  distances: Float[Array, "b n"] | None = None,
  share: float = 0.5,
) -> tuple[Float[Array, "b"], Float[Array, "b n"]]:
  """Returns image and patch scores, which are anomaly probabilities.

  Patch scores are means over feature layers, so they stay in [0, 1].
  AnomalyCLIP sums over layers, which leaves all metrics the same. With
  `memory_distances` to reference images, patch scores are fused with these
  distances, and the image score is the mean of the image probability and the
  largest patch score.
  """
  patches = jax.nn.softmax(patch_logits)[..., ANOMALY].mean(axis=1)
  if distances is None:
    return jax.nn.softmax(image_logits)[:, ANOMALY], patches
  patches = fuse(patches, distances, share)
  return image_scores(image_logits, patches, MEMORY_BETA), patches


def memory_distances(
  patch_features: Float[Array, "b f n d"], memory: Float[Array, "f m d"]
) -> Float[Array, "b n"]:
  """Returns the distance of each patch to the nearest reference patch.

  The distance is the mean over layers of `clip(1 - largest cosine, 0, 1)`;
  clipping keeps scores in [0, 1]. Layers are computed in turn to save memory.

  Args:
    patch_features: patch features, not L2-normalised.
    memory: L2-normalised patches of the reference images; see `make_memory`.
  """

  def layer_distances(arrays):
    patches, rows = arrays
    cosines = jnp.einsum("bnd,md->bnm", normalize(patches), rows)
    return jnp.clip(1 - cosines.max(axis=-1), 0, 1)

  layers = patch_features.swapaxes(0, 1), memory
  return jax.lax.map(layer_distances, layers).mean(axis=0)


def make_memory(
  patch_features: Float[Array, "b f n d"],
) -> Float[Array, "f m d"]:
  """Returns all patches of the reference images, L2-normalised, by layer."""
  _, layers, _, width = patch_features.shape
  return normalize(patch_features).swapaxes(0, 1).reshape(layers, -1, width)


def fuse(
  patch_scores: Float[Array, "b n"],
  distances: Float[Array, "b n"] | None,
  share: float,
) -> Float[Array, "b n"]:
  """Returns `(1 - share) * patch_scores + share * distances`.

  Without distances, returns the patch scores.
  """
  if distances is None:
    return patch_scores
  return (1 - share) * patch_scores + share * distances


def upsampling_matrix(
  image_size: int, grid_size: int, method: str
) -> Float[np.ndarray, "h gh"]:
  """Returns the matrix U that upsamples one axis of a patch grid to pixels.

  Args:
    image_size: number of pixels; a multiple of `grid_size`.
    grid_size: number of patches.
    method: "nearest" repeats each patch's value; "bilinear" interpolates
      between patch centres and extends the outermost values to the edges.
  """
  patch_size = image_size // grid_size
  if method == "nearest":
    return np.repeat(np.eye(grid_size, dtype=np.float32), patch_size, axis=0)
  # Positions of the pixels' centres, in patches from the first patch's centre.
  places = (np.arange(image_size) + 0.5) / patch_size - 0.5
  places = np.clip(places, 0, grid_size - 1)
  distances = np.abs(places[:, None] - np.arange(grid_size))
  return np.maximum(1 - distances, 0).astype(np.float32)


def upsample(
  patches: Float[Array, "b f n s"], image_size: int
) -> Float[Array, "b f m s"]:
  """Returns the bilinear `U p U^T` of each patch map p, in row-major order.

  U is `upsampling_matrix`, and m is the number of pixels, image_size**2.
  """
  side = round(patches.shape[2] ** 0.5)
  matrix = upsampling_matrix(image_size, side, "bilinear")
  grid = patches.reshape(*patches.shape[:2], side, side, -1)
  pixels = jnp.einsum("hg,bfgks,wk->bfhws", matrix, grid, matrix)
  return pixels.reshape(*patches.shape[:2], image_size**2, -1)


def blurring_matrix(image_size: int, sigma: float) -> Float[np.ndarray, "h h"]:
  """Returns the matrix that applies a Gaussian filter to one axis, float64.

  The filter is that of `scipy.ndimage.gaussian_filter`: reflected at the edges
  (d c b a | a b c d) and truncated at 4 sigma.

  Args:
    image_size: number of pixels.
    sigma: standard deviation in pixels; 0 returns the identity.
  """
  if not sigma:
    return np.eye(image_size)
  radius = int(_TRUNCATE_SIGMAS * sigma + 0.5)
  offsets = np.arange(-radius, radius + 1)
  kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
  kernel /= kernel.sum()
  rows = np.arange(image_size)
  sources = (rows[:, None] + offsets) % (2 * image_size)
  sources = np.minimum(sources, 2 * image_size - 1 - sources)
  blur = np.zeros((image_size, image_size))
  np.add.at(blur, (rows[:, None], sources), kernel)
  return blur


def anomaly_maps(
  patch_scores: Float[Array, "b n"],
  image_size: int,
  upsampling: str,
  blur_sigma: float,
) -> Float[Array, "b h w"]:
  """Returns the anomaly maps `A p A^T` of patch scores p on the patch grid.

  Upsampling and blurring are linear and separable, so A is the product of
  `blurring_matrix` (with `blur_sigma`) and `upsampling_matrix`.
  """
  side = round(patch_scores.shape[-1] ** 0.5)
  matrix = blurring_matrix(image_size, blur_sigma) @ upsampling_matrix(
    image_size, side, upsampling
  )
  matrix = matrix.astype(np.float32)
  grid = patch_scores.reshape(-1, side, side)
  return jnp.einsum("hg,bgk,wk->bhw", matrix, grid, matrix)
