"""Reads images from files, bytes, arrays and PIL images."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pathlib
import stat
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from cops_jax.errors import InputError, needs_extra, shorten
from cops_jax.paths import readable
from cops_jax.typing import Float, Integer

if TYPE_CHECKING:
  from PIL import Image


# PIL's other decoders start programs (EPS) or have few tests.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
# Bytes 4 to 12 of HEIC files.
_HEIC = tuple(
  f"ftyp{brand}".encode()
  for brand in ("heic", "heix", "heim", "heis", "hevc", "hevx", "mif1", "msf1")
)
# Decoding a file of a few kilobytes can need gigabytes.
MAX_PIXELS = 80_000_000
BITS_PER_CHANNEL = 16
_ORIENTATION, _BITS, _PHOTOMETRIC = 274, 258, 262  # TIFF's tags.
_MODES = ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LA", "PA", "RGBA", "RGBX")

# The path or bytes of a file, a PIL image, an array (h, w), (h, w, 3) or
# (h, w, 4) of uint8 or (h, w) of uint16, or a result of `read`.
AnyImage = Any


@dataclasses.dataclass(frozen=True)
class UprightImage:
  """An image as a viewer shows it: upright, on white, 8 bits per channel.

  Attributes:
    image: PIL image; in the mode of the file if `read` changed nothing.
    notes: guesses of `read`, each as "KIND: DETAIL".
    orientation: EXIF's number of the orientation in the file; 1 is upright.
    stored_as: format of the file and PIL's mode, such as "PNG I;16".
  """

  image: Any
  notes: tuple[str, ...] = ()
  orientation: int = 1
  stored_as: str = ""

  @property
  def size(self) -> tuple[int, int]:
    """Width and height in pixels."""
    return self.image.size

  @property
  def pixels(self) -> Integer[np.ndarray, "h w 3"]:
    """All pixels at full size, uint8 RGB."""
    return np.asarray(self.image.convert("RGB"))

  def resize(
    self,
    size: int | tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
  ) -> Integer[np.ndarray, "h w 3"]:
    """Returns the image or a part of it as uint8 RGB at a given size.

    As in the authors' code, PIL's bicubic filter resizes the image in its own
    mode without keeping the aspect ratio, and the result is converted to RGB.

    Args:
      size: width and height of the result in pixels; a single number for both.
      box: left, top, right and bottom of the part, in pixels, also fractional;
        None for the whole image.
    """
    from PIL import Image

    size = (size, size) if isinstance(size, int) else size
    resized = self.image.resize(size, Image.Resampling.BICUBIC, box)
    return np.asarray(resized.convert("RGB"))


def read(
  image: AnyImage,
  *,
  bits_per_channel: int = BITS_PER_CHANNEL,
  max_pixels: int = MAX_PIXELS,
  name: str = "",
) -> UprightImage:
  """Returns an image upright, on white, with 8 bits per channel.

  The whole package reads images with this function. It does not change images
  of 8 bits per channel that are upright and opaque. For all others:

  - EXIF's orientation is applied.
  - Transparent pixels are blended with white.
  - The high 8 bits of a channel are used. The number of its bits is the one
    that the file declares (TIFF: BitsPerSample below 16; PNG: sBIT), else
    `bits_per_channel`. The value of a pixel does not depend on other pixels.
  - 32-bit integers are read if `bits_per_channel` differs from its default;
    floating-point numbers are refused.
  - The first of several pages or frames is used.
  - CMYK is converted to RGB with PIL's formula, without a colour profile.
  - HEIC is read if the extra `heic` (pillow-heif) is installed.

  Args:
    image: an image of any kind in `AnyImage`.
    bits_per_channel: bits of a channel with more than 8 bits, for files that do
      not declare them.
    max_pixels: largest number of pixels to decode; larger files are refused.
    name: name of the image in errors; by default the path of the file.

  Raises:
    InputError: if the image cannot be read.
  """
  if isinstance(image, UprightImage):
    return image
  try:
    with _open(image, max_pixels) as (opened, file):
      return _make_upright(opened, file, bits_per_channel)
  except Exception as error:  # PIL raises many kinds of errors.
    if not name:
      is_path = isinstance(image, (str, os.PathLike))
      name = readable(image) if is_path else "the image"
    raise InputError(f"{name} cannot be read: {shorten(error)}") from error


def _open(image, max_pixels):
  """Returns a context with a PIL image, not yet decoded, and its file."""
  from PIL import Image

  if isinstance(image, np.ndarray):
    channels = image.shape[2:]
    if (
      not image.size
      or image.ndim not in (2, 3)
      or channels not in ((), (3,), (4,))
      or image.dtype not in (np.uint8, np.uint16)
      or (channels and image.dtype == np.uint16)
    ):
      raise ValueError(
        "expected uint8 (h, w), (h, w, 3) or (h, w, 4) or uint16 (h, w), not"
        f" {image.dtype} {image.shape}"
      )
    image = Image.fromarray(image)
  if isinstance(image, Image.Image):
    return contextlib.nullcontext((image, None))
  file = image if isinstance(image, bytes) else pathlib.Path(image)
  return _open_file(file, max_pixels)


@contextlib.contextmanager
def _open_file(file, max_pixels):
  if isinstance(file, bytes):
    opened = io.BytesIO(file)
  elif stat.S_ISREG(os.stat(file).st_mode):
    # Given a path, PIL memory-maps some TIFFs and then rotates them wrongly.
    opened = open(file, "rb")
  else:
    raise ValueError("it is not a regular file")
  with opened as file:
    yield _identify(file, max_pixels), file


def _identify(file, max_pixels):
  from PIL import Image, UnidentifiedImageError

  start = file.read(12)
  if not start:
    raise ValueError("it is empty")
  formats = FORMATS
  if start[4:] in _HEIC:
    with needs_extra("HEIC", "heic", "pillow_heif"):
      import pillow_heif
    pillow_heif.register_heif_opener()
    formats = ("HEIF",)
  too_many = ValueError(f"it has more than {max_pixels / 1e6:g} million pixels")
  if Image.MAX_IMAGE_PIXELS and max_pixels > Image.MAX_IMAGE_PIXELS:
    Image.MAX_IMAGE_PIXELS = max_pixels  # PIL's own limit is lower.
  try:
    image = Image.open(file, formats=formats)
  except UnidentifiedImageError as error:  # PIL's message can name a BytesIO.
    raise ValueError(
      f"it is not a valid image file ({', '.join(formats)})"
    ) from error
  except (
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
  ) as error:
    raise too_many from error
  if image.width * image.height > max_pixels:
    raise too_many
  return image


@contextlib.contextmanager
def open_image(
  file: bytes | pathlib.Path, max_pixels: int = MAX_PIXELS
) -> Iterator[Image.Image]:
  """Opens an image file or its bytes with PIL and decodes it completely.

  This is for masks, because their values are not colours; `read` is for images.
  The image is decoded at once, because PIL raises an error only at the first
  attempt and then returns the intact part of a damaged image.

  Raises:
    ValueError: if the file is not regular, is empty, has none of `FORMATS` or
      more than `max_pixels`. PIL raises many kinds of errors for damaged files.
  """
  with _open_file(file, max_pixels) as (image, _):
    image.load()
    yield image


def _make_upright(image, file, bits_per_channel):
  """Decodes a PIL image and applies the rules of `read`; `file` can be None."""
  from PIL import Image

  # PIL rotates TIFFs when it decodes them and then drops their orientation.
  orientation = getattr(image, "tag_v2", {}).get(_ORIENTATION, 1)
  image.load()
  if orientation not in range(2, 9):
    orientation = read_orientation(image)
  upright, notes = turn_upright(image), _count_pages(image, file)
  depth, significant = _find_depth(image, file)
  if image.mode == "F":
    raise ValueError(
      "its pixels are floating-point numbers, which have no fixed black and"
      " white. Save it with 8 or 16 bits per channel"
    )
  if depth > 8:
    is_grey = image.mode.startswith("I")
    values = np.asarray(upright if is_grey else upright.convert("RGB"))
    union = int(np.bitwise_or.reduce(values, axis=None))  # All bits in use.
    if not is_grey:  # PIL decodes only the high bytes.
      union = union << 8 | 255
    bits = _find_bits(union, depth, significant, bits_per_channel)
    if not is_grey and bits < 16:
      raise ValueError(
        f"its colours have {bits} bits stored in 16, and only the high 8 of the"
        " 16 can be decoded. Save it with 8 bits per channel"
      )
    if union < 0 or union >> bits:
      raise ValueError(
        f"its values, from {values.min()} to {values.max()}, do not fit in"
        f" {bits} bits. Set input.bits_per_channel to the bits of the camera"
      )
    if union and not union >> (bits - 1) and not significant and depth >= 16:
      notes.append(
        f"the values use fewer than {bits} bits, so the image may be too dark;"
        " set input.bits_per_channel to the bits of the camera:"
        f" {union.bit_length()} bits"
      )
    if is_grey:
      grey = (values >> (bits - 8)).astype(np.uint8)
      if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:  # 0 is white.
        grey = 255 - grey
      key = image.info.get("transparency")
      if isinstance(key, int):
        grey[values == key] = 255
      upright = Image.fromarray(grey)
  if is_transparent(upright):
    white = Image.new("RGBA", upright.size, "white")
    upright = Image.alpha_composite(white, upright.convert("RGBA"))
    upright = upright.convert("RGB")
  if upright.mode not in _MODES:
    raise ValueError(f"PIL reads it in the unsupported mode {upright.mode}")
  stored_as = f"{image.format} {image.mode}"
  return UprightImage(upright, tuple(notes), orientation, stored_as)


def _count_pages(image, file):
  """Returns a list, with a note if a file has several pages or frames."""
  from PIL import Image

  # The other frames of MPO, a kind of JPEG, are previews of the first.
  if not getattr(image, "is_animated", False) or image.format == "MPO":
    return []
  number = "number unknown"
  if file is not None:
    # Open the file again, because counting can lose the decoded page.
    with contextlib.suppress(Exception):
      number = Image.open(file, formats=(image.format,)).n_frames
  return [f"only the first of several pages or frames is used: {number}"]


def _find_depth(image, file):
  """Returns the stored and the declared bits per channel; 0 if undeclared."""
  if hasattr(image, "tag_v2"):
    return max(image.tag_v2.get(_BITS, (1,))), 0
  if image.format == "PNG" and file is not None:
    file.seek(0)
    depth, kind = file.read(33)[24], b""  # The signature and IHDR.
    while depth == 16 and kind != b"IDAT":
      length, kind = struct.unpack(">I4s", file.read(8))
      if kind == b"sBIT":
        return depth, max(8, *file.read(length))
      file.seek(length + 4, io.SEEK_CUR)
    return depth, 0
  if image.mode == "I":
    return 32, 0
  depth = 16 if image.mode.startswith("I;16") else 8
  # pillow_heif scales grey to 16 bits and colours to 8.
  return depth, depth if image.format == "HEIF" else 0


def _find_bits(union, depth, significant, given):
  """Returns the number of bits that the values of a channel can use.

  `union` is the bitwise union of all values, and `significant` the number of
  bits that a PNG declares, or 0.
  """
  if depth < 16:
    return depth
  if significant:
    # PNG requires values scaled to 16 bits, but not every program scales them.
    rest = (1 << (16 - significant)) - 1
    return 16 if union >> significant or not union & rest else significant
  if depth > 16 and given == BITS_PER_CHANNEL:
    raise ValueError(
      "its pixels are 32-bit integers, which have no fixed white. Save it with"
      " 8 or 16 bits per channel, or set input.bits_per_channel to the number"
      " of bits in use"
    )
  return min(given, depth)


def read_orientation(image: Image.Image) -> int:
  """Returns the EXIF orientation of an image; 1 (upright) if it has none."""
  from PIL import ExifTags

  try:
    orientation = image.getexif().get(ExifTags.Base.Orientation)
  except Exception:  # PIL raises many kinds; the pixels may be intact.
    return 1
  return orientation if orientation in range(1, 9) else 1


def turn_upright(image: Image.Image) -> Image.Image:
  """Returns an image rotated by its EXIF orientation, if that can be read."""
  from PIL import ImageOps

  if read_orientation(image) == 1:
    return image
  return ImageOps.exif_transpose(image)


def is_transparent(image: Image.Image) -> bool:
  """Returns True if an image has pixels that are not opaque."""
  if not image.has_transparency_data:
    return False
  return image.convert("RGBA").getchannel("A").getextrema()[0] < 255


def resize_map(
  anomaly_map: Float[np.ndarray, "h w"], size: tuple[int, int]
) -> Float[np.ndarray, "new_h new_w"]:
  """Resizes a map bilinearly to a width and height; returns float32."""
  from PIL import Image

  image = Image.fromarray(anomaly_map.astype(np.float32))
  return np.array(image.resize(size, Image.Resampling.BILINEAR))
