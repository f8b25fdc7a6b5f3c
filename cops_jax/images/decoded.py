"""Users' images in any form, decoded for a detector."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from cops_jax.errors import InputError, shorten
from cops_jax.images import tiles as tiling
from cops_jax.images.decoding import (
  as_seen,
  open_image,
  resize_image,
)
from cops_jax.typing import Integer

# A file's path or bytes, a PIL image, or an array (h, w), (h, w, 3) or
# (h, w, 4) of uint8.
AnyImage = Any


@dataclasses.dataclass(frozen=True)
class DecodedImage:
  """An image at the model's size.

  Attributes:
    pixels: the whole, RGB.
    size: width and height of the upright image, in pixels.
    tiles: the requested ones, from `tiles.normalize`; "" for none.
    grid: rows and columns of the tiles.
    parts: the tiles' pixels, row by row; none if the grid is (1, 1).
  """

  pixels: Integer[np.ndarray, "h w 3"]
  size: tuple[int, int]
  tiles: str = ""
  grid: tuple[int, int] = tiling.WHOLE
  parts: Integer[np.ndarray, "t h w 3"] | tuple[()] = ()


def decode_any(
  image: AnyImage,
  image_size: int,
  max_pixels: int,
  name: str = "the image",
  tiles: str = "",
) -> DecodedImage:
  """Returns an image as `decoding.as_seen` reads it, at a model's size.

  Args:
    image: see `AnyImage`.
    image_size: side of the model's input, in pixels.
    max_pixels: see `decoding.open_image`.
    name: for errors, if the image is not a path.
    tiles: see `tiles.normalize`.

  Raises:
    InputError: the image cannot be read, or the tiles are invalid.
  """
  tiles = tiling.normalize(tiles)
  try:
    with _open(image, max_pixels) as opened:
      seen = as_seen(opened)
      grid = tiling.choose_grid(tiles, seen.size, image_size)
      return DecodedImage(
        resize_image(seen, image_size),
        seen.size,
        tiles,
        grid,
        () if grid == tiling.WHOLE else tiling.cut(seen, grid, image_size),
      )
  except Exception as error:  # PIL raises many kinds of errors.
    if isinstance(image, (str, os.PathLike)):
      name = os.fspath(image)
    raise InputError(f"{name} cannot be read: {shorten(error)}") from error


def _open(image, max_pixels):
  """Returns a context of the image as PIL's."""
  from PIL import Image

  if isinstance(image, np.ndarray):
    if (
      image.dtype != np.uint8
      or not image.size
      or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4)))
    ):
      raise ValueError(
        f"expected uint8 (h, w), (h, w, 3) or (h, w, 4), not {image.dtype}"
        f" {image.shape}"
      )
    image = Image.fromarray(image)
  if isinstance(image, Image.Image):
    return contextlib.nullcontext(image)
  file = image if isinstance(image, bytes) else pathlib.Path(image)
  return open_image(file, max_pixels)
