"""Training losses, as pure functions on arrays.

Every mean is over the global batch without its padding, where `padding_mask` is
False. Masks are passed as the number of mask pixels in each patch of
`patch_area` pixels. Predictions are constant within a patch, so these counts
determine the per-pixel losses exactly. A method that predicts each pixel passes
pixels as patches with an area of 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from cops_jax.scoring import ANOMALY, NORMAL
from cops_jax.typing import Array, Bool, Float, Integer

PATCH_LOSS_WEIGHT = 4.0

_FOCAL_EPSILON = 1e-5


def count_mask_pixels(
  mask: Integer[np.ndarray, "h w"], patch_size: int
) -> Integer[np.ndarray, "n"]:
  """Returns the number of mask pixels per patch, int32, in row-major order."""
  side = mask.shape[0] // patch_size
  blocks = mask.reshape(side, patch_size, side, patch_size)
  return blocks.sum(axis=(1, 3), dtype=np.int32).reshape(-1)


def _mean(values, weights):
  """Returns the weighted mean of values; 0 if all weights are 0."""
  weights = jnp.broadcast_to(weights, values.shape).astype(values.dtype)
  total = weights.sum()
  return (values * weights).sum() / jnp.where(total > 0, total, 1)


def image_loss(
  logits: Float[Array, "b s=2"],
  labels: Integer[Array, "b"],
  padding_mask: Bool[Array, "b"],
) -> Float[Array, ""]:
  """Returns the mean softmax cross-entropy of the images' labels."""
  import optax  # Input workers import this module but do not need optax.

  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  return _mean(losses, padding_mask)


def focal_loss(
  probability: Float[Array, "b n s=2"],
  mask_counts: Integer[Array, "b n"],
  patch_area: int,
  padding_mask: Bool[Array, "b"],
) -> Float[Array, ""]:
  """Returns the mean over pixels of `-(1 - pt)^2 log pt`.

  `pt = clip(onehot(mask), e, 1 - e) . probability + e` with e = 1e-5 (Lin et
  al., Focal Loss for Dense Object Detection, 2017, with gamma 2).
  """
  epsilon = _FOCAL_EPSILON
  normal, anomaly = probability[..., NORMAL], probability[..., ANOMALY]

  def pixel_loss(own, other):
    pt = (1 - epsilon) * own + epsilon * other + epsilon
    return -((1 - pt) ** 2) * jnp.log(pt)

  fraction = mask_counts / patch_area
  losses = fraction * pixel_loss(anomaly, normal)
  losses += (1 - fraction) * pixel_loss(normal, anomaly)
  return _mean(losses, padding_mask[:, None])


def dice_loss(
  probability: Float[Array, "b n"],
  counts: Integer[Array, "b n"],
  patch_area: int,
  padding_mask: Bool[Array, "b"],
) -> Float[Array, ""]:
  """Returns 1 minus the mean over images of their Dice coefficients.

  The coefficient is `(2 sum(p m) + 1) / (sum(p) + sum(m) + 1)`, with sums over
  pixels of the probability p and the mask m of one state (Milletari et al.,
  V-Net, 2016, with smoothing 1).
  """
  overlap = (probability * counts).sum(axis=-1)
  total = probability.sum(axis=-1) * patch_area + counts.sum(axis=-1)
  return 1 - _mean((2 * overlap + 1) / (total + 1), padding_mask)


def patch_loss(
  probability: Float[Array, "b f n s=2"],
  mask_counts: Integer[Array, "b n"],
  patch_area: int,
  padding_mask: Bool[Array, "b"],
) -> Float[Array, ""]:
  """Returns the focal loss and both states' dice losses, summed over layers."""

  def layer_loss(probability):
    return (
      focal_loss(probability, mask_counts, patch_area, padding_mask)
      + dice_loss(
        probability[..., ANOMALY], mask_counts, patch_area, padding_mask
      )
      + dice_loss(
        probability[..., NORMAL],
        patch_area - mask_counts,
        patch_area,
        padding_mask,
      )
    )

  return jax.vmap(layer_loss, in_axes=1)(probability).sum()


def gather_loss(
  distances: Float[Array, "b s=2 n"],
  mask_counts: Integer[Array, "b n"],
  padding_mask: Bool[Array, "b"],
) -> Float[Array, ""]:
  """Returns the mean distance of mask-free patches to the normal prototypes."""
  return _mean(distances[:, NORMAL], (mask_counts == 0) & padding_mask[:, None])


def scatter_loss(
  distances: Float[Array, "b s=2 n"],
  mask_counts: Integer[Array, "b n"],
  padding_mask: Bool[Array, "b"],
) -> Float[Array, ""]:
  """Returns the mean distance of masked patches to the anomaly prototypes.

  A patch with any mask pixel is masked. Without masked patches the loss is 0.
  """
  return _mean(distances[:, ANOMALY], (mask_counts > 0) & padding_mask[:, None])


def kl_loss(
  mean: Float[Array, "b d"],
  log_var: Float[Array, "b d"],
  padding_mask: Bool[Array, "b"],
) -> Float[Array, ""]:
  """Returns the batch mean of KL(N(mean, exp(log_var)) || N(0, I)).

  The divergence is `-1/2 sum_d (1 + log_var - mean^2 - exp(log_var))` (Kingma
  and Welling, Auto-Encoding Variational Bayes, 2014).
  """
  divergence = -0.5 * (1 + log_var - mean**2 - jnp.exp(log_var)).sum(axis=-1)
  return _mean(divergence, padding_mask)


def reconstruction_loss(
  image_features: Float[Array, "b d"],
  category_bias: Float[Array, "b d"],
  padding_mask: Bool[Array, "b"],
  mode: str,
) -> Float[Array, ""]:
  """Returns the mean squared difference of image features and decoded biases.

  Args:
    image_features: image features, not L2-normalised.
    category_bias: one decoded bias for each image.
    padding_mask: False for padding.
    mode: "pairwise" compares every image with every bias, as the authors'
      released code does; "matched" compares each image with its own bias;
      "none" returns 0.
  """
  if mode == "none":
    return jnp.zeros(())
  if mode == "matched":
    return _mean((image_features - category_bias) ** 2, padding_mask[:, None])
  return _mean(
    (image_features[:, None] - category_bias[None]) ** 2,
    (padding_mask[:, None] & padding_mask[None])[..., None],
  )


def total_loss(terms: Mapping[str, Float[Array, ""]]) -> Float[Array, ""]:
  """Returns the sum of the loss terms; the term "patch" counts four times."""
  return sum(
    (PATCH_LOSS_WEIGHT if name == "patch" else 1.0) * term
    for name, term in terms.items()
  )
