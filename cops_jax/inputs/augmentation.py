"""Mosaics and crops of training images.

This is the class-aware augmentation of UniADet (arXiv 2601.05552). Each time an
image is read, it stays unchanged with probability 1/2. Otherwise, with equal
probability, it becomes a tile of a mosaic or is cropped to a cell of a grid.
Mosaics and grids have 2 x 2 or 3 x 3 cells. The category and the label of the
image do not change.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cops_jax.errors import InputError
from cops_jax.images import read
from cops_jax.images.decoding import UprightImage
from cops_jax.images.masks import Mask, example_mask
from cops_jax.runtime.randomness import AUGMENTATION_KEY, hash_example
from cops_jax.typing import Integer

if TYPE_CHECKING:
  from cops_jax.inputs.pipeline import BatchOptions

_GRIDS = (2, 3)


@dataclasses.dataclass(frozen=True)
class Change:
  """The change of an image in one step.

  Attributes:
    number: number of rows, which is also that of columns.
    places: positions of a mosaic's images, row by row; empty for a crop.
    rng: generator that chooses the cell of a crop.
  """

  number: int
  places: Sequence[int]
  rng: np.random.Generator


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """Draws the changes of images; can be passed to worker processes.

  Attributes:
    kind: value of config.train.augmentation.
    seed: seed of the run.
    pools: positions of the images for mosaics of each category and label.
  """

  kind: str
  seed: int
  pools: Mapping[tuple[str, int], np.ndarray]

  def draw(
    self, example: Mapping[str, Any], place: int, step: int
  ) -> Change | None:
    """Returns the change of the example at `place` in a step, or None."""
    rng = np.random.default_rng(
      (self.seed, AUGMENTATION_KEY, step, int(hash_example(example)))
    )
    if rng.random() < 0.5:
      return None
    number, places = int(rng.choice(_GRIDS)), []
    if rng.random() < 0.5:
      category, label = example["category"], int(example["label"])
      pool = self.pools[_scope(self.kind, category), label]
      others = rng.choice(pool, number**2 - 1)
      places = rng.permutation([place, *others]).tolist()
    return Change(number, places, rng)


def make_augmentation(
  kind: str, seed: int, examples: Sequence[Mapping[str, Any]]
) -> Augmentation | None:
  """Returns an augmentation for the examples of a data set.

  `kind` is the value of config.train.augmentation; "none" returns None.
  """
  if kind == "none":
    return None
  pools = {}
  for place, (category, label) in enumerate(examples.categories_and_labels()):
    for joined in range(label, 2):  # Normal images join anomalous ones too.
      key = _scope(kind, category), joined
      pools.setdefault(key, []).append(place)
  pools = {key: np.array(places) for key, places in pools.items()}
  return Augmentation(kind, seed, pools)


def _scope(kind, category):
  return category if kind == "class_aware" else ""


def read_example(
  example: Mapping[str, Any],
  place: int,
  step: int,
  examples: Sequence[Mapping[str, Any]],
  options: BatchOptions,
  failures: list[tuple[str, str]],
) -> tuple[UprightImage, Integer[np.ndarray, "s s 3"], Mask]:
  """Reads an image and its mask, and augments them if `options` says so.

  Args:
    example: example at the position `place` in `examples`.
    place, step: position in the data set and number of the training step.
    examples, options: the arguments of `pipeline.iterate_batches`.
    failures: receives the paths of unreadable images of a mosaic, with reasons;
      the example itself replaces them.

  Returns:
    The upright image, and the pixels and the mask at the model's size. The
    notes of the mask describe the example's own mask.

  Raises:
    InputError: if the example cannot be read.
  """
  side, augmentation, change = options.image_size, options.augmentation, None
  image, mask = own = _open(example, options.reading)
  if augmentation is not None:
    change = augmentation.draw(example, place, step)
  if change is None:
    return image, image.resize(side), mask.fit(side)
  if not change.places:
    part, part_mask = crop(image, mask, bool(example["label"]), change)
    return image, part.resize(side), part_mask.fit(side)

  def open_tile(other):
    if other == place:
      return own
    try:
      return _open(examples[other], options.reading)
    except InputError as error:
      failures.append((examples[other]["path"], str(error)))
      return own

  tiles = map(open_tile, change.places)
  pixels, mask_pixels = make_mosaic(tiles, change.number, side)
  return image, pixels, mask._replace(pixels=mask_pixels)


def _open(example, reading):
  """Returns the upright image and mask of an example at their own sizes."""
  image = read(example["image"], name="its image", **reading)
  return image, example_mask(example, image.orientation, image.size, reading)


def make_mosaic(
  tiles: Iterable[tuple[UprightImage, Mask]], number: int, side: int
) -> tuple[Integer[np.ndarray, "s s 3"], Integer[np.ndarray, "s s"]]:
  """Returns the pixels of a mosaic and of its mask.

  Args:
    tiles: upright images and masks, row by row; each is resized once.
    number: number of rows, which is also that of columns.
    side: width and height of the mosaic, in pixels.
  """
  pixels = np.empty((side, side, 3), np.uint8)
  mask = np.empty((side, side), np.uint8)
  boxes = _grid((side, side), number)
  for (left, top, right, bottom), (tile, part) in zip(
    boxes, tiles, strict=True
  ):
    size, place = (right - left, bottom - top), np.s_[top:bottom, left:right]
    pixels[place], mask[place] = tile.resize(size), part.fit(size).pixels
  return pixels, mask


def crop(
  image: UprightImage, mask: Mask, is_anomalous: bool, change: Change
) -> tuple[UprightImage, Mask]:
  """Returns a random cell of an upright image and of its mask.

  The mask can have another size than the image. The cell of an anomalous image
  contains an anomalous pixel. If no cell does, or a side of the image has fewer
  pixels than cells, returns the whole image.
  """
  parts = [
    mask.pixels[top:bottom, left:right]
    for left, top, right, bottom in _grid(
      mask.pixels.shape[::-1], change.number
    )
  ]
  cells = [
    cell for cell, part in enumerate(parts) if part.any() or not is_anomalous
  ]
  if not cells or min(image.size) < change.number:
    return image, mask
  cell = change.rng.choice(cells)
  box = _grid(image.size, change.number)[cell]
  image = dataclasses.replace(image, image=image.image.crop(box))
  return image, mask._replace(pixels=parts[cell]) if is_anomalous else mask


def _grid(size, number):
  """Returns the left, top, right and bottom of each cell, row by row."""
  across, down = (
    [round(index * length / number) for index in range(number + 1)]
    for length in size
  )
  return [
    (left, top, right, bottom)
    for top, bottom in itertools.pairwise(down)
    for left, right in itertools.pairwise(across)
  ]
