"""Tiles: overlapping parts of an image, scored in addition to the whole image.

A grid has rows and columns; (1, 1) is only the whole image. The tiles of a grid
are equally large. Neighbours share a quarter of a tile, so one of them contains
all of a defect up to that width.
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
MAX_NUMBER = 8  # Rows or columns; each tile costs as much as an image.
EXPECTED = f"rows x columns from 1x1 to {MAX_NUMBER}x{MAX_NUMBER}, such as 2x3"
_OVERLAP = 0.25  # Share of a tile that it has in common with its neighbour.
_MAX_SHRINKAGE = 2.0  # Factor by which "auto" can shrink the sides of a tile.


@dataclasses.dataclass(frozen=True)
class DecodedImage:
  """An image and its tiles at the model's size.

  Attributes:
    pixels: pixels of the whole image, RGB.
    size: width and height of the upright image, in pixels.
    tiles: requested tiles, a result of `normalize`.
    grid: rows and columns of the tiles.
    parts: pixels of the tiles, row by row; empty if the grid is (1, 1).
    orientation, notes: attributes of the `UprightImage`.
  """

  pixels: Integer[np.ndarray, "h w 3"]
  size: tuple[int, int]
  tiles: str = ""
  grid: tuple[int, int] = WHOLE
  parts: Integer[np.ndarray, "t h w 3"] | tuple[()] = ()
  orientation: int = 1
  notes: tuple[str, ...] = ()


def parse_grid(text: str) -> tuple[int, int] | None:
  """Returns the rows and columns of "2x3" or "" (1 x 1); None if invalid."""
  found = re.fullmatch(r"([0-9]{1,2})x([0-9]{1,2})", text or "1x1")
  grid = tuple(map(int, found.groups())) if found else (0, 0)
  return grid if all(1 <= number <= MAX_NUMBER for number in grid) else None


def normalize(text: str) -> str:
  """Returns "auto", a grid such as "2x3", or "" for only the whole image.

  Raises:
    UsageError: if the text is neither "auto" nor a valid grid.
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
  """Returns the rows and columns of the tiles of an image.

  "auto" chooses the fewest rows and columns whose tiles keep at least half of
  the pixels of each side. If even 8 tiles along the longer side keep less, the
  tiles along the other side can be as long as those.

  Args:
    tiles: result of `normalize`.
    size: width and height of the image, in pixels.
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
  """Returns an image and its tiles at the model's size, in pixels.

  Raises:
    UsageError: if `normalize` does not accept the tiles.
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
  """Returns the length of a tile as a share of the image."""
  return 1 / (number - (number - 1) * _OVERLAP)


def _spans(number):
  """Returns start and end of each tile as shares of the image, (number, 2)."""
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
  """Returns the pixels of each tile along an axis, and a matrix for its map.

  The matrix resizes the map of a tile bilinearly, as `resize_map` does, and
  weights it by a raised cosine. This is 0 at the edges of the tile, which
  avoids seams.
  """
  places = (np.arange(length) + 0.5) / length
  spans, share = _spans(number), _tile_share(number)
  within = (places - spans[:, :1]) / share
  weights = np.where(abs(within - 0.5) < 0.5, np.sin(np.pi * within) ** 2, 0)
  weights /= weights.sum(axis=0)
  # The filter is wider for a map that shrinks, so that each pixel counts.
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
  """Blends the maps of tiles, row by row, into a map of size (width, height).

  Each pixel is the mean of the tiles that contain it, weighted by a raised
  cosine that is 1 in the middle of a tile and falls to 0 at its edges.
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
  """Combines the scores and maps of the whole image and of its tiles.

  The score is the mean of the whole image's score and the highest score of a
  tile. The map is the mean of the whole image's map and the blend of the tiles.

  Args:
    found: score and map of the whole image, then of each tile, row by row; the
      grid (1, 1) has no tiles.
    grid: rows and columns of the tiles.
    size: width and height of the result, in pixels.
  """
  score, anomaly_map = found[0]
  anomaly_map = resize_map(anomaly_map, size)
  if grid == WHOLE:
    return score, anomaly_map
  scores, maps = zip(*found[1:], strict=True)
  blended = blend(maps, grid, size)
  blended += anomaly_map  # In place, because a photograph's map has 200 MB.
  blended /= 2
  return (score + max(scores)) / 2, blended
