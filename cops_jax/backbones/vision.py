"""The parts that all frozen vision towers share.

A backbone is a Flax module with frozen parameters. It has the attributes
`dtype`, `attention`, `implementation`, `image_mean`, `image_std` and
`feature_width`, the width d of its features. Its method
`encode_layers(images, feature_layers)` returns class tokens (b, f, d) and patch
tokens (b, f, n, d) after the given layers. `CLIP` also has a value path and a
text tower.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from cops_jax.typing import Array, Float, Integer


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Sizes of a vision tower.

  Attributes:
    patch_size: side of a patch, in pixels.
    num_layers, num_heads: numbers of layers and of attention heads.
    width, mlp_width: numbers of channels of a token and inside an MLP.
    num_other_tokens: number of tokens that are not patches.
  """

  patch_size: int
  num_layers: int
  num_heads: int
  width: int
  mlp_width: int
  num_other_tokens: int


def sizes_of(config: Any) -> Sizes:
  """Returns the sizes in a `CLIPConfig` or a `DINOConfig`."""
  if isinstance(config, Sizes):
    return config
  vision = config.vision_config
  return Sizes(
    patch_size=vision.patch_size,
    num_layers=vision.num_hidden_layers,
    num_heads=vision.num_attention_heads,
    width=vision.hidden_size,
    mlp_width=vision.intermediate_size,
    num_other_tokens=1,
  )


def normalize_images(
  images: Integer[Array, "b h w 3"],
  mean: Sequence[float],
  std: Sequence[float],
) -> Float[Array, "b h w 3"]:
  """Returns images normalised as a backbone expects them.

  Args:
    images: RGB images, uint8.
    mean, std: mean and standard deviation of the backbone's training images
      per channel, in [0, 1].
  """
  mean, std = (jnp.array(values).reshape(1, 1, 1, 3) for values in (mean, std))
  return (images / 255.0 - mean) / std


def resize_position_embedding(
  embedding: Float[Array, "p c"],
  grid_size: int,
  method: str = "bilinear",
  antialias: bool = False,
) -> Float[Array, "q c"]:
  """Resizes a vision tower's position embedding to another patch grid.

  Args:
    embedding: row of the class token, then rows of the tower's square grid.
    grid_size: side of the new grid, in patches.
    method: "bilinear" for CLIP, "cubic" for DINOv2.
    antialias: if True, filters when the grid shrinks, as for DINOv2.

  Returns:
    1 + grid_size**2 rows. The class token's row is unchanged; the rows of
    patches are interpolated with half-pixel centres.
  """
  class_row, patch_rows = embedding[:1], embedding[1:]
  side = round(patch_rows.shape[0] ** 0.5)
  if side == grid_size:
    return embedding
  width = embedding.shape[-1]
  grid = jax.image.resize(
    patch_rows.reshape(side, side, width),
    (grid_size, grid_size, width),
    method=method,
    antialias=antialias,
  )
  return jnp.concatenate([class_row, grid.reshape(-1, width)])


def cast_matrices(
  params: Mapping[str, Any], dtype: jax.typing.DTypeLike
) -> Mapping[str, Any]:
  """Returns parameters with their matrices cast to the computation's type.

  The towers cast matrices before use anyway, so only memory changes.
  Embeddings, norms and biases keep their type.
  """
  return flax.traverse_util.path_aware_map(
    lambda path, leaf: leaf.astype(dtype) if path[-1] == "kernel" else leaf,
    params,
  )
