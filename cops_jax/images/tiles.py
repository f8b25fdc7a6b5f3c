"""Tiles: overlapping parts of an image, looked at beside the whole.

A grid has rows and columns; (1, 1) is the whole alone. Its tiles are equal
parts of the image, and neighbours share a quarter of a tile: what is no wider
than that is whole in one of them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from cops_jax.errors import InputError
from cops_jax.images.decoding import resize_image
from cops_jax.typing import Float, Integer

if TYPE_CHECKING:
  from PIL import Image

WHOLE = (1, 1)
AUTO = "auto"
MAX_NUMBER = 8  # Of rows and of columns: each tile costs as much as an image.
EXPECTED = f"rows x columns from 1x1 to {MAX_NUMBER}x{MAX_NUMBER}, such as 2x3"
_OVERLAP = 0.25  # The share of a tile that its neighbour has too.
_MAX_SHRINKAGE = 2.0  # Of a tile's sides with "auto".

_Numbers = TypeVar("_Numbers")


def parse_grid(text: str) -> tuple[int, int] | None:
  """Rows and columns of a text such as "2x3", (1, 1) of ""; None of others."""
  found = re.fullmatch(r"([0-9]{1,2})x([0-9]{1,2})", text or "1x1")
  grid = tuple(map(int, found.groups())) if found else (0, 0)
  return grid if all(1 <= number <= MAX_NUMBER for number in grid) else None


def normalize(text: str) -> str:
  """What says which tiles: "auto", "2x3" or, for the whole alone, "".

  Raises:
    InputError: it says nothing of the kind.
  """
  if text == AUTO:
    return text
  grid = parse_grid(text)
  if grid is None:
    raise InputError(f"tiles are {text!r}, expected {AUTO} or {EXPECTED}")
  return "" if grid == WHOLE else "{}x{}".format(*grid)


def choose_grid(
  tiles: str, size: tuple[int, int], image_size: int
) -> tuple[int, int]:
  """Rows and columns for an image.

  Args:
    tiles: what `normalize` gives. "auto" is the fewest tiles that keep at least
      half of the pixels of each side, and at most 8 rows and columns.
    size: the image's width and height, in pixels.
    image_size: side of what the model sees, in pixels.
  """
  if tiles != AUTO:
    return parse_grid(tiles)
  longest = _MAX_SHRINKAGE * image_size

  def choose(length):
    number = 1
    while number < MAX_NUMBER and length * _tile_share(number) > longest:
      number += 1
    return number

  width, height = size
  return choose(height), choose(width)


def _tile_share(number):
  """A tile's length, as a share of what a number of them cover."""
  return 1 / (number - (number - 1) * _OVERLAP)


def _spans(number):
  """Begin and end of each tile, as shares of what they cover, (number, 2)."""
  share = _tile_share(number)
  starts = np.arange(number) * (1 - _OVERLAP) * share
  return np.stack([starts, np.minimum(starts + share, 1)], axis=1)


def cut(
  image: Image.Image, grid: tuple[int, int], image_size: int
) -> Integer[np.ndarray, "t h w 3"]:
  """An image's tiles, row by row, as `resize_image` gives them.

  Args:
    image: of any size.
    grid: rows and columns.
    image_size: side of each, in pixels.
  """
  rows, columns = (_spans(number) for number in grid)
  return np.stack(
    [
      resize_image(
        image,
        image_size,
        (
          *(left * image.width, top * image.height),
          *(right * image.width, bottom * image.height),
        ),
      )
      for top, bottom in rows
      for left, right in columns
    ]
  )


def _bands(number, image_size, length):
  """For each tile in a row, the pixels that it covers and a matrix to them.

  See `blending_matrices`.
  """
  places = (np.arange(length) + 0.5) / length
  spans, share = _spans(number), _tile_share(number)
  within = (places - spans[:, :1]) / share
  weights = np.where(abs(within - 0.5) < 0.5, np.sin(np.pi * within) ** 2, 0)
  weights /= weights.sum(axis=0)
  # Wider where a map shrinks, so that none of its pixels is left out.
  reach = max(image_size / (length * share), 1)
  for span, weight, place in zip(spans, weights, within, strict=True):
    covered = slice(*np.searchsorted(places, span).tolist())
    distances = np.arange(image_size) + 0.5 - image_size * place[covered, None]
    matrix = np.maximum(1 - abs(distances) / reach, 0)
    matrix *= (weight[covered] / matrix.sum(axis=1))[:, None]
    yield covered, matrix.astype(np.float32)


def blending_matrices(
  number: int, image_size: int, length: int
) -> Float[np.ndarray, "t length s"]:
  """One axis of the step from tiles' maps to their blend, as matrices.

  The blend is the sum over rows r and columns c of `A_r m_rc B_c^T`. A pixel
  is the mean of the tiles that it lies in, weighted by a raised cosine that is
  1 in a tile's middle and falls to 0 at its edges, so that there are no seams.
  Tiles' maps are resized bilinearly, as `resize_map` does it.

  Args:
    number: of tiles along the axis.
    image_size: side of a tile's map, in pixels.
    length: of the blend, in pixels.
  """
  matrices = np.zeros((number, length, image_size), np.float32)
  for matrix, (covered, band) in zip(
    matrices, _bands(number, image_size, length), strict=True
  ):
    matrix[covered] = band
  return matrices


def blend(
  maps: Float[np.ndarray, "t s s"], grid: tuple[int, int], size: tuple[int, int]
) -> Float[np.ndarray, "h w"]:
  """The blend of tiles' maps; see `blending_matrices`.

  Args:
    maps: row by row.
    grid: rows and columns.
    size: width and height of the blend, in pixels.
  """
  width, height = size
  down = list(_bands(grid[0], maps.shape[-1], height))
  across = list(_bands(grid[1], maps.shape[-1], width))
  blended = np.zeros((height, width), np.float32)
  for place, tile in enumerate(maps):
    row, column = divmod(place, grid[1])
    (rows, left), (columns, right) = down[row], across[column]
    blended[rows, columns] += left @ tile @ right.T
  return blended


def combine(whole: _Numbers, tiles: _Numbers) -> _Numbers:
  """The mean of what the whole image and its tiles say.

  Args:
    whole: an image's score, or its map.
    tiles: the largest of its tiles' scores, or the blend of their maps.
  """
  return (whole + tiles) / 2
