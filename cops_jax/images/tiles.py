"""Tiles: overlapping parts of an image, scored beside the whole.

A grid has rows and columns; (1, 1) is the whole image alone. All tiles of a
grid are equal, and neighbours share a quarter of a tile, so a defect no wider
than that is complete in one of them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from cops_jax.errors import UsageError
from cops_jax.images.decoding import UprightImage, resize_map
from cops_jax.typing import Float, Integer

WHOLE = (1, 1)
AUTO = "auto"
MAX_NUMBER = 8  # Of rows and of columns: each tile costs as much as an image.
EXPECTED = f"rows x columns from 1x1 to {MAX_NUMBER}x{MAX_NUMBER}, such as 2x3"
_OVERLAP = 0.25  # The share of a tile that its neighbour has too.
_MAX_SHRINKAGE = 2.0  # Of a tile's sides with "auto".


@dataclasses.dataclass(frozen=True)
class DecodedImage:
  """An image at the model's size.

  Attributes:
    pixels: the whole, RGB.
    size: width and height of the upright image, in pixels.
    tiles: the requested ones, from `normalize`; "" for none.
    grid: rows and columns of the tiles.
    parts: the tiles' pixels, row by row; none if the grid is (1, 1).
    orientation, notes: see `UprightImage`.
  """

  pixels: Integer[np.ndarray, "h w 3"]
  size: tuple[int, int]
  tiles: str = ""
  grid: tuple[int, int] = WHOLE
  parts: Integer[np.ndarray, "t h w 3"] | tuple[()] = ()
  orientation: int = 1
  notes: tuple[str, ...] = ()


def parse_grid(text: str) -> tuple[int, int] | None:
  """Returns the rows and columns of "2x3", (1, 1) of "", None of other text."""
  found = re.fullmatch(r"([0-9]{1,2})x([0-9]{1,2})", text or "1x1")
  grid = tuple(map(int, found.groups())) if found else (0, 0)
  return grid if all(1 <= number <= MAX_NUMBER for number in grid) else None


def normalize(text: str) -> str:
  """Returns "auto", a grid such as "2x3" or, for the whole alone, "".

  Raises:
    UsageError: the text names no tiles.
  """
  if text == AUTO:
    return text
  grid = parse_grid(text)
  if grid is None:
    raise UsageError(f"tiles are {text!r}, expected {AUTO} or {EXPECTED}")
  return "" if grid == WHOLE else "{}x{}".format(*grid)


def choose_grid(
  tiles: str, size: tuple[int, int], image_size: int
) -> tuple[int, int]:
  """Returns rows and columns for an image.

  Args:
    tiles: from `normalize`. "auto" is the fewest rows and the fewest columns
      whose tiles keep at least half of the pixels of each side. Where 8 of them
      keep less of one side, the other keeps no more than that side.
    size: the image's width and height, in pixels.
    image_size: side of the model's input, in pixels.
  """
  if tiles != AUTO:
    return parse_grid(tiles)
  finest = max(size) * _tile_share(MAX_NUMBER)
  longest = max(_MAX_SHRINKAGE * image_size, finest)

  def choose(length):
    number = 1
    while length * _tile_share(number) > longest:
      number += 1
    return number

  width, height = size
  return choose(height), choose(width)


def decode(
  image: UprightImage, image_size: int, tiles: str = ""
) -> DecodedImage:
  """Returns an image and its tiles at a model's size.

  Args:
    image: from `cops_jax.images.read`.
    image_size: side of the model's input, in pixels.
    tiles: see `normalize`.

  Raises:
    InputError: the tiles are invalid.
  """
  tiles = normalize(tiles)
  grid = choose_grid(tiles, image.size, image_size)
  return DecodedImage(
    image.resize(image_size),
    image.size,
    tiles,
    grid,
    () if grid == WHOLE else cut(image, grid, image_size),
    image.orientation,
    image.notes,
  )


def _tile_share(number):
  """The length of one of several tiles, as a share of their image's."""
  return 1 / (number - (number - 1) * _OVERLAP)


def _spans(number):
  """Begin and end of each tile, as shares of the image, (number, 2)."""
  share = _tile_share(number)
  starts = np.arange(number) * (1 - _OVERLAP) * share
  return np.stack([starts, np.minimum(starts + share, 1)], axis=1)


def cut(
  image: UprightImage, grid: tuple[int, int], image_size: int
) -> Integer[np.ndarray, "t h w 3"]:
  """Returns an image's tiles, row by row, resized to `image_size` pixels."""
  rows, columns = (_spans(number) for number in grid)
  width, height = image.size
  boxes = [
    (left * width, top * height, right * width, bottom * height)
    for top, bottom in rows
    for left, right in columns
  ]
  return np.stack([image.resize(image_size, box) for box in boxes])


def _bands(number, image_size, length):
  """For each tile along an axis, its pixels in the blend and a matrix to them.

  The matrix resizes the tile's map bilinearly, as `resize_map` does, and
  weights it by a raised cosine that is 1 in the tile's middle and 0 at its
  edges. So there are no seams.
  """
  places = (np.arange(length) + 0.5) / length
  spans, share = _spans(number), _tile_share(number)
  within = (places - spans[:, :1]) / share
  weights = np.where(abs(within - 0.5) < 0.5, np.sin(np.pi * within) ** 2, 0)
  weights /= weights.sum(axis=0)
  # Wider where a map shrinks, so that each of its pixels counts.
  reach = max(image_size / (length * share), 1)
  bands = []
  for span, weight, place in zip(spans, weights, within, strict=True):
    covered = slice(*np.searchsorted(places, span).tolist())
    distances = np.arange(image_size) + 0.5 - image_size * place[covered, None]
    matrix = np.maximum(1 - abs(distances) / reach, 0)
    matrix *= (weight[covered] / matrix.sum(axis=1))[:, None]
    bands.append((covered, matrix.astype(np.float32)))
  return bands


def blend(
  maps: Sequence[Float[np.ndarray, "s s"]],
  grid: tuple[int, int],
  size: tuple[int, int],
) -> Float[np.ndarray, "h w"]:
  """Returns one map from the tiles' maps.

  Each pixel is the mean of the tiles that contain it, weighted by a raised
  cosine that is 1 in a tile's middle and falls to 0 at its edges. Maps are row
  by row; size is width and height of the result, in pixels.
  """
  width, height = size
  down = _bands(grid[0], maps[0].shape[-1], height)
  across = _bands(grid[1], maps[0].shape[-1], width)
  blended = np.zeros((height, width), np.float32)
  for place, tile in enumerate(maps):
    row, column = divmod(place, grid[1])
    (rows, left), (columns, right) = down[row], across[column]
    blended[rows, columns] += left @ tile @ right.T
  return blended


def join(
  found: Sequence[tuple[Any, Float[np.ndarray, "s s"]]],
  grid: tuple[int, int],
  size: tuple[int, int],
) -> tuple[Any, Float[np.ndarray, "h w"]]:
  """Returns an image's score and map from those of the whole and of its tiles.

  The score is the mean of the whole image's and of the largest of the tiles',
  the map the mean of the whole image's and of the tiles' blend.

  Args:
    found: score and map of the whole, then of each tile, row by row; of the
      whole alone where the grid is (1, 1).
    grid: rows and columns.
    size: width and height of the map to return, in pixels.
  """
  score, anomaly_map = found[0]
  anomaly_map = resize_map(anomaly_map, size)
  if grid == WHOLE:
    return score, anomaly_map
  scores, maps = zip(*found[1:], strict=True)
  blended = blend(maps, grid, size)
  blended += anomaly_map  # In place: a photograph's has 200 MB.
  blended /= 2
  return (score + max(scores)) / 2, blended
