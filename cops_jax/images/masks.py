"""Reads mask files."""

from __future__ import annotations

import pathlib

import numpy as np

from cops_jax.images.decoding import MAX_PIXELS, open_image, turn_upright
from cops_jax.typing import Integer


def decode_mask(
  file: bytes | pathlib.Path,
  size: int,
  orientation: int = 1,
  max_pixels: int = MAX_PIXELS,
) -> Integer[np.ndarray, "h w"]:
  """Returns a mask file, or its bytes, as 0 and 1, uint8, of side `size`.

  Grey values above 0 become 255, PIL's bilinear filter resizes them, and a
  pixel above one half belongs to the mask.

  Args:
    file: the mask.
    size: of its sides, in pixels.
    orientation: of the image that the mask is drawn over, if that is turned.
    max_pixels: see `open_image`.
  """
  from PIL import ExifTags, Image

  with open_image(file, max_pixels) as mask:
    binary = np.asarray(mask.convert("L")) > 0
  mask = Image.fromarray(binary.astype(np.uint8) * 255)
  mask.getexif()[ExifTags.Base.Orientation] = orientation
  resized = turn_upright(mask).resize((size, size), Image.Resampling.BILINEAR)
  return (np.asarray(resized) / 255 > 0.5).astype(np.uint8)
