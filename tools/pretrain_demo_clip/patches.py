"""Attributes of patches, computed from their pixels."""

from __future__ import annotations

import jax.numpy as jnp

from cops_jax.typing import Array, Float, Integer
from tools.pretrain_demo_clip.captions import COLORS
from tools.pretrain_demo_clip.model import PATCH_SIZE

# Limits between the words of `captions.ATTRIBUTES`, for colours in [0, 1].
BRIGHTNESS_EDGES = (0.2, 0.4, 0.6)
CONTRAST_EDGES = (0.03, 0.09)  # Limits of the standard deviation in a patch.


def patch_pixels(images: Float[Array, "b h w 3"]) -> Float[Array, "b n p"]:
  """Returns the pixels of each patch in a row: b h w 3 -> b n (P P 3)."""
  batch, size, _, _ = images.shape
  grid = size // PATCH_SIZE
  blocks = images.reshape(batch, grid, PATCH_SIZE, grid, PATCH_SIZE, 3)
  return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(batch, grid**2, -1)


def attribute_labels(
  images: Float[Array, "b h w 3"],
) -> tuple[Integer[Array, "b n"], ...]:
  """Returns the index of each patch's word in each group of `ATTRIBUTES`.

  The colours of `images` are in [0, 1].
  """
  pixels = patch_pixels(images)
  pixels = pixels.reshape(*pixels.shape[:2], -1, 3)
  color = pixels.mean(axis=2)
  anchors = jnp.array(list(COLORS.values()))
  distance = jnp.square(color[:, :, None] - anchors).sum(axis=-1)
  grey = pixels.mean(axis=3)
  brightness = jnp.digitize(grey.mean(axis=2), jnp.array(BRIGHTNESS_EDGES))
  contrast = jnp.digitize(grey.std(axis=2), jnp.array(CONTRAST_EDGES))
  batch, patches = contrast.shape
  grid = round(patches**0.5)
  third = jnp.arange(grid) * 3 // grid
  place = (3 * third[:, None] + third).reshape(1, -1)
  place = jnp.broadcast_to(place, (batch, patches))
  return distance.argmin(axis=-1), brightness, contrast, place
