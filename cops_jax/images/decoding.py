"""Reads image and mask files, exactly as the authors' code decodes them."""

from __future__ import annotations

import contextlib
import glob
import io
import os
import pathlib
import stat
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from cops_jax.errors import InputError
from cops_jax.typing import Float, Integer

if TYPE_CHECKING:
  from PIL import Image


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
# PIL's other decoders start programs (EPS) or are little tested.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
# A file of a few kilobytes can need gigabytes when decoded.
MAX_PIXELS = 80_000_000


@contextlib.contextmanager
def open_image(
  file: bytes | pathlib.Path, max_pixels: int = MAX_PIXELS
) -> Iterator[Image.Image]:
  """Opens an image file, or its bytes, with PIL, and decodes all of it.

  Every image is read here: PIL returns the intact part of a damaged image at
  the second attempt.

  Raises:
    ValueError: it is not a regular file, it is empty, in none of `FORMATS`, or
      has more than `max_pixels`. For a damaged file PIL raises many kinds of
      errors.
  """
  from PIL import Image, UnidentifiedImageError

  if isinstance(file, bytes):
    num_bytes, file = len(file), io.BytesIO(file)
  else:
    state = os.stat(file)
    num_bytes = state.st_size
    if not stat.S_ISREG(state.st_mode):
      raise ValueError("it is not a regular file")
  if not num_bytes:
    raise ValueError("it is empty")
  too_many = ValueError(f"it has more than {max_pixels / 1e6:g} million pixels")
  if Image.MAX_IMAGE_PIXELS and max_pixels > Image.MAX_IMAGE_PIXELS:
    Image.MAX_IMAGE_PIXELS = max_pixels  # PIL's own limit is a default too.
  try:
    opened = Image.open(file, formats=FORMATS)
  except UnidentifiedImageError as error:  # Its message may name a BytesIO.
    raise ValueError(
      f"it is not an image in one of {', '.join(FORMATS)}"
    ) from error
  except (
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
  ) as error:
    raise too_many from error
  with opened as image:
    if image.width * image.height > max_pixels:
      raise too_many
    image.load()
    yield image


def decode_image(
  file: bytes | pathlib.Path, size: int, max_pixels: int = MAX_PIXELS
) -> Integer[np.ndarray, "h w 3"]:
  """Returns an image file, or its bytes, as uint8 RGB of side `size`."""
  with open_image(file, max_pixels) as image:
    return resize_image(image, size)


def read_orientation(image: Image.Image) -> int:
  """Returns the EXIF orientation of an image; 1, upright, without any."""
  from PIL import ExifTags

  try:
    orientation = image.getexif().get(ExifTags.Base.Orientation)
  except Exception:  # PIL raises many kinds; the pixels may be intact.
    return 1
  return orientation if orientation in range(1, 9) else 1


def turn_upright(image: Image.Image) -> Image.Image:
  """Turns an image as its EXIF data say, if they can be read."""
  from PIL import ImageOps

  if read_orientation(image) == 1:
    return image
  return ImageOps.exif_transpose(image)


def is_transparent(image: Image.Image) -> bool:
  """Whether an image has pixels that are not opaque."""
  if not image.has_transparency_data:
    return False
  return image.convert("RGBA").getchannel("A").getextrema()[0] < 255


def as_seen(image: Image.Image) -> Image.Image:
  """Returns any image upright, on white, with grey values of 16 bits as 8.

  The high byte of 16 bits is used. PIL would clip values at 255, as the
  authors' code does for data sets.

  Raises:
    ValueError: its pixels are 32-bit integers or floating-point numbers, which
      do not define black and white.
  """
  from PIL import Image

  upright = turn_upright(image)
  if upright.mode.startswith("I;16"):
    return Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
  if upright.mode in ("I", "F"):
    raise ValueError(
      f"its pixels are of PIL's mode {upright.mode}; expected 8 or 16 bits"
    )
  if is_transparent(upright):
    white = Image.new("RGBA", upright.size, "white")
    return Image.alpha_composite(white, upright.convert("RGBA")).convert("RGB")
  return upright


def resize_image(
  image: Image.Image,
  size: int,
  box: tuple[float, float, float, float] | None = None,
) -> Integer[np.ndarray, "h w 3"]:
  """Returns an image as uint8 RGB of side `size`.

  PIL's bicubic filter resizes it in its own mode, without keeping the aspect
  ratio. Then it is converted to RGB. The box, in pixels or fractions of them,
  is the part to use.
  """
  from PIL import Image

  resized = image.resize((size, size), Image.Resampling.BICUBIC, box)
  return np.asarray(resized.convert("RGB"))


def resize_map(
  anomaly_map: Float[np.ndarray, "h w"], size: tuple[int, int]
) -> Float[np.ndarray, "new_h new_w"]:
  """Returns a map at another width and height, resized bilinearly, float32."""
  from PIL import Image

  image = Image.fromarray(anomaly_map.astype(np.float32))
  return np.array(image.resize(size, Image.Resampling.BILINEAR))


def find_images(places: Iterable[str]) -> list[pathlib.Path]:
  """Returns image files in the order of the places, each once.

  Args:
    places: files, folders and patterns such as "photos/**/*.jpg". Folders are
      searched for image suffixes, with all folders below.

  Raises:
    InputError: there is no image in a place; names it.
  """
  found = {}
  for place in places:
    try:
      paths = _find(pathlib.Path(place).expanduser())
    except (OSError, RuntimeError) as error:  # Such as an unknown user.
      raise InputError(f"{place} cannot be read: {error}") from error
    if not paths:
      raise InputError(
        f"{place} is not a file, folder or pattern with images in it"
        f" ({', '.join(IMAGE_SUFFIXES)})"
      )
    for path in paths:
      found.setdefault(os.path.realpath(path), path)
  return list(found.values())


def _find(path):
  if path.is_dir():
    return sorted(_walk(path))
  if path.is_file():
    return [path]
  files = map(pathlib.Path, sorted(glob.glob(str(path), recursive=True)))
  return [file for file in files if not file.is_dir()]


def _walk(folder):
  """Yields files with image suffixes; an unreadable folder is an error."""

  def fail(error):
    raise error

  for parent, _, files in os.walk(folder, onerror=fail):
    parent = pathlib.Path(parent)
    # A broken link is an image that cannot be read, and is reported.
    yield from (
      parent / name
      for name in files
      if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
    )
