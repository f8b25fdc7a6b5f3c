"""Reads masks, the pixel-level ground truth."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cops_jax.errors import InputError, shorten
from cops_jax.images.decoding import MAX_PIXELS, open_image, turn_upright
from cops_jax.typing import Bool, Integer

if TYPE_CHECKING:
  from PIL import Image

# Paths or bytes; several files are united.
MaskFiles = bytes | pathlib.Path | Sequence[bytes | pathlib.Path]

# Kinds of notes.
CUT = "the mask has more than two values, which are split at their middle"
EMPTY = "the mask is empty, but the image is anomalous"
FULL = "the mask covers the whole image"
OTHER_SIZE = "the mask and the image differ in size"
UPRIGHT = (
  "the mask is read as upright, because it has the upright image's shape"
)
VANISHED = "the mask vanishes when it is resized to {} x {} pixels"
# The model's size in all recipes.
RECIPES_SIDE = 518
# Largest number of a defect class; grey values of soft edges exceed it.
_MAX_CLASS = 63
_MAX_NUM_CLASSES = 16


class Mask(NamedTuple):
  """The anomalous pixels of an image, and notes such as "KIND: DETAIL"."""

  pixels: Bool[np.ndarray, "h w"] | Integer[np.ndarray, "h w"]
  notes: tuple[str, ...] = ()

  def turn(self, orientation: int, size: tuple[int, int]) -> Mask:
    """Returns the upright mask of an anomalous image.

    The mask is rotated like its image, unless it already has the shape of the
    upright image.

    Args:
      orientation: EXIF's number of the orientation in the file of the image.
      size: width and height of the upright image.
    """
    from PIL import ExifTags, Image

    whole = Image.fromarray(self.pixels.astype(np.uint8))
    sides = f"{whole.width} x {whole.height} pixels"
    width, height = size
    notes = list(self.notes)
    if sorted(whole.size) != sorted(size):
      notes.append(f"{OTHER_SIZE}: {sides}, not {width} x {height}")
    has_its_shape = whole.width * height == whole.height * width
    if orientation >= 5 and width != height and has_its_shape:
      notes.append(f"{UPRIGHT}: {sides}")
    else:
      whole.getexif()[ExifTags.Base.Orientation] = orientation
      whole = turn_upright(whole)
    if not self.pixels.any():
      notes.append(f"{EMPTY}: {sides}")
    elif self.pixels.all():
      notes.append(f"{FULL}: {sides}")
    return Mask(np.asarray(whole) > 0, tuple(notes))

  def fit(self, size: int | tuple[int, int]) -> Mask:
    """Returns the upright mask at a given size, uint8 with 0 and 1.

    PIL's bilinear filter resizes it as 0 and 255; pixels above one half are
    anomalous. A single number is both width and height.
    """
    from PIL import Image

    size = (size, size) if isinstance(size, int) else size
    whole = Image.fromarray(self.pixels.astype(np.uint8) * 255)
    resized = whole.resize(size, Image.Resampling.BILINEAR)
    mask = (np.asarray(resized) / 255 > 0.5).astype(np.uint8)
    notes = self.notes
    if self.pixels.any() and not mask.any():
      number = f"{self.pixels.sum()} of {whole.width} x {whole.height} pixels"
      notes += (f"{VANISHED.format(*size)}: {number}",)
    return Mask(mask, notes)


def example_mask(
  example: Mapping[str, Any],
  orientation: int,
  size: tuple[int, int],
  reading: Mapping[str, int],
) -> Mask:
  """Returns the upright mask of an example; one False pixel if it has no mask.

  Args:
    example: example of a data set, see `cops_jax.datasets.load`.
    orientation, size: the arguments of `Mask.turn`.
    reading: result of `config.reading`; "max_pixels" also limits the mask.

  Raises:
    InputError: if the mask cannot be read.
  """
  if not (example["label"] and example["has_mask"]):
    return Mask(np.zeros((1, 1), bool))
  try:
    mask = read_mask(example["mask"], reading.get("max_pixels", MAX_PIXELS))
    return mask.turn(orientation, size)
  except Exception as error:  # PIL raises many kinds of errors.
    raise InputError(f"its mask cannot be read: {shorten(error)}") from error


def read_mask(
  files: MaskFiles,
  max_pixels: int = MAX_PIXELS,
  *,
  has_soft_edges: bool = True,
) -> Mask:
  """Returns the anomalous pixels of a mask in the orientation of its file.

  A mask separates anomalous pixels from a black background by these rules:

  - Every value above 0 is anomalous: 255, a dark 1, or a number for each kind
    of defect (VisA, MVTec LOCO). The largest channel of a colour counts.
  - Soft edges, which are values between the lowest and the highest, are split
    at the middle. JPEGs and files of floating-point numbers have soft edges. A
    file with values above 63 has soft edges if it has more than 16 values in
    between, or one of them fills no square of 3 x 3 pixels.
  - If no pixel is black, the background is the lower of two values, or the
    first of two palette indices.
  - Transparent pixels are black. If the result does not have two values, the
    alpha channel is the mask.

  Args:
    files: path or bytes of a file, or several, which are united.
    max_pixels: largest number of pixels of a file.
    has_soft_edges: if False, every value above 0 is anomalous, as in the
      authors' code.

  Raises:
    ValueError: if the values of a file do not fit these rules, or files differ
      in size. PIL raises many kinds of errors for damaged files.
  """
  if isinstance(files, (bytes, os.PathLike)):
    with open_image(files, max_pixels) as image:
      is_lossy = image.format == "JPEG"
      return _find_anomalous(_find_values(image), is_lossy, has_soft_edges)
  masks = [
    read_mask(file, max_pixels, has_soft_edges=has_soft_edges) for file in files
  ]
  shapes = {mask.pixels.shape for mask in masks}
  if len(shapes) > 1:
    found = ", ".join(f"{width} x {height}" for height, width in sorted(shapes))
    raise ValueError(f"its files differ in size: {found}")
  pixels = np.logical_or.reduce([mask.pixels for mask in masks])
  notes = dict.fromkeys(note for mask in masks for note in mask.notes)
  return Mask(pixels, tuple(notes))


def _find_values(image: Image.Image) -> np.ndarray:
  """Returns the channel that a mask is drawn in, or the palette's indices."""
  if len(image.getbands()) == 1 and image.mode != "P":
    return np.asarray(image)
  *colors, alpha = map(np.asarray, image.convert("RGBA").split())
  value = np.maximum(np.maximum(colors[0], colors[1]), colors[2])
  has_alpha = alpha.min() < alpha.max()
  if has_alpha:
    value = (value.astype(np.uint16) * alpha // 255).astype(np.uint8)
  if not value.min() and _is_binary(value):
    return value
  if image.mode == "P":
    indices = np.asarray(image)
    if _is_binary(indices) or (not value.any() and np.ptp(indices)):
      return indices
  if has_alpha:
    return alpha
  if not value.min() or image.format == "JPEG":
    return value
  varying = [color > color.min() for color in colors if np.ptp(color)]
  is_one = all((part == varying[0]).all() for part in varying)
  if is_one and all(_is_binary(color) for color in colors if np.ptp(color)):
    return varying[0] if varying else value
  found = image.convert("RGB").getcolors(_MAX_NUM_CLASSES)
  listed = ", ".join(sorted(str(color) for _, color in found or ()))
  raise ValueError(
    "it is not a mask: none of its colours is black, and no channel has two"
    f" values: {listed or f'more than {_MAX_NUM_CLASSES} colours'}"
  )


def _find_anomalous(
  values: np.ndarray, is_lossy: bool, has_soft_edges: bool
) -> Mask:
  """Returns the anomalous pixels of a channel by the rules of `read_mask`."""
  low, high = values.min(), values.max()
  if not (low >= 0 and np.isfinite(high)):
    raise ValueError(f"it is not a mask: its values range from {low} to {high}")
  between = values[(values > low) & (values < high)]
  if not between.size:
    return Mask(values > (low if low < high else 0))
  if not has_soft_edges:
    return Mask(values > 0)
  levels = np.unique(between)
  is_exact = np.issubdtype(values.dtype, np.integer) and not is_lossy
  if is_exact and (
    high <= _MAX_CLASS
    or (len(levels) <= _MAX_NUM_CLASSES and _fill_squares(values, levels))
  ):
    if low > 0:
      found = ", ".join(map(str, (low, *levels, high)))
      raise ValueError(f"it is not a mask: it has the values {found}, but no 0")
    return Mask(values > 0)
  low, high = float(low), float(high)
  middle = (low + high) / 2
  num_middle = np.sum(abs(between - middle) < (high - low) / 4)
  if num_middle > 2 / 3 * values.size:
    raise ValueError(
      f"it is not a mask: most of its values are between {low:g} and {high:g}"
    )
  return Mask(values > middle, (f"{CUT}: from {low:g} to {high:g}",))


def _fill_squares(values, levels):
  """Returns whether each level fills at least one square of 3 x 3 pixels."""
  from scipy import ndimage  # Slow to import.

  is_even = ndimage.maximum_filter(values, 3) == ndimage.minimum_filter(
    values, 3
  )
  return np.isin(levels, values[is_even]).all()


def _is_binary(values):
  low, high = values.min(), values.max()
  return low < high and ((values == low) | (values == high)).all()
