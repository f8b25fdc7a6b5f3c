"""How features compare: with prototypes, with texts, with their neighbours."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from cops_jax.typing import Array, Float


def normalize(x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
  """L2-normalises the last axis."""
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def smooth_patches(
  patches: Float[Array, "b f n d"], window: int
) -> Float[Array, "b f n d"]:
  """Averages each patch with its neighbours in a square window.

  Stride 1, zero padding, and the divisor is always window**2: the padding
  counts (the spatial part of CoPS's alignment).
  """
  if window == 1:
    return patches
  batch, layers, num_patches, width = patches.shape
  side = round(num_patches**0.5)
  smoothed = nn.avg_pool(
    patches.reshape(-1, side, side, width),
    window_shape=(window, window),
    padding="SAME",
    count_include_pad=True,
  )
  return smoothed.reshape(batch, layers, num_patches, width)


def prototype_distances(
  patches: Float[Array, "b n d"], prototypes: Float[Array, "b s k d"]
) -> Float[Array, "b s n"]:
  """Cosine distance of each patch to the nearest prototype of each state."""
  cosine = jnp.einsum(
    "bnd,bskd->bsnk", normalize(patches), normalize(prototypes)
  )
  return (1 - cosine).min(axis=-1)


def text_logits(
  features: Float[Array, "b *n d"],
  text_features: Float[Array, "b s d"],
  temperature: float,
) -> Float[Array, "b *n s"]:
  """Cosine of features with normalised text features, over the temperature."""
  return (
    jnp.einsum("b...d,bsd->b...s", normalize(features), text_features)
    / temperature
  )
