"""Reads image files, bytes, arrays and PIL's images, all by one function."""

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


# PIL's other decoders start programs (EPS) or are little tested.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
# How files of HEIC begin, after their first four bytes.
_HEIC = tuple(
  f"ftyp{brand}".encode()
  for brand in ("heic", "heix", "heim", "heis", "hevc", "hevx", "mif1", "msf1")
)
# A file of a few kilobytes can need gigabytes when decoded.
MAX_PIXELS = 80_000_000
BITS_PER_CHANNEL = 16
_ORIENTATION, _BITS, _PHOTOMETRIC = 274, 258, 262  # TIFF's tags.
_MODES = ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LA", "PA", "RGBA", "RGBX")

# A file's path or bytes, a PIL image, an array (h, w), (h, w, 3) or (h, w, 4)
# of uint8, or (h, w) of uint16; or what `read` returned.
AnyImage = Any


@dataclasses.dataclass(frozen=True)
class UprightImage:
  """An image as it is seen: upright, on white, with 8 bits per channel.

  Attributes:
    image: PIL's, in the file's own mode where `read` changed nothing.
    notes: what was guessed, each as "KIND: DETAIL".
    orientation: EXIF's number for how the pixels were stored; 1 for upright.
    stored_as: the file's format and PIL's mode, such as "PNG I;16".
  """

  image: Any
  notes: tuple[str, ...] = ()
  orientation: int = 1
  stored_as: str = ""

  @property
  def size(self) -> tuple[int, int]:
    """Width and height, in pixels."""
    return self.image.size

  @property
  def pixels(self) -> Integer[np.ndarray, "h w 3"]:
    """All of its pixels, uint8 RGB."""
    return np.asarray(self.image.convert("RGB"))

  def resize(
    self,
    size: int | tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
  ) -> Integer[np.ndarray, "h w 3"]:
    """Returns the image, or a part of it, as uint8 RGB of a model's size.

    PIL's bicubic filter resizes it in its own mode, without keeping the aspect
    ratio. Then it is converted to RGB, as in the authors' code.

    Args:
      size: width and height of the result, in pixels; one number for both.
      box: left, top, right and bottom of the part, in pixels or fractions of
        them; None for the whole.
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
  """Returns any image upright, on white, with 8 bits per channel.

  Everything reads images by this function. On files of 8 bits that are upright
  and opaque it changes nothing. Otherwise:

  - EXIF's orientation is applied.
  - Transparent pixels are laid on white.
  - Of more than 8 bits the high 8 are used. A channel has the bits that the
    file declares (TIFF: BitsPerSample below 16; PNG: sBIT), else
    `bits_per_channel`. No value depends on the image's others.
  - Integers of 32 bits are read if `bits_per_channel` is set to another value
    than its default; floating-point numbers are refused.
  - Of several pages or frames the first is used.
  - CMYK becomes RGB by PIL's formula, without a colour profile.
  - HEIC is read if pillow-heif is installed, which the extra `heic` does.

  Args:
    image: see `AnyImage`.
    bits_per_channel: of channels that have more than 8 and do not declare them.
    max_pixels: larger files are not decoded.
    name: for errors; by default the file's path.

  Raises:
    InputError: the image cannot be read.
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
  """Returns a context of PIL's image, not yet decoded, and of its file."""
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
    # PIL would map some TIFFs that it is to turn into memory, wrongly.
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
    Image.MAX_IMAGE_PIXELS = max_pixels  # PIL's own limit is a default too.
  try:
    image = Image.open(file, formats=formats)
  except UnidentifiedImageError as error:  # Its message may name a BytesIO.
    raise ValueError(
      f"it is not an image in one of {', '.join(formats)}"
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
  """Opens an image file, or its bytes, with PIL, and decodes all of it.

  For masks, whose values are not colours; `read` is for images. PIL returns the
  intact part of a damaged image at the second attempt, so this is the first.

  Raises:
    ValueError: it is not a regular file, it is empty, in none of `FORMATS`, or
      has more than `max_pixels`. For a damaged file PIL raises many kinds of
      errors.
  """
  with _open_file(file, max_pixels) as (image, _):
    image.load()
    yield image


def _make_upright(image, file, bits_per_channel):
  """Decodes PIL's image and applies `read`'s rules; None for no open file."""
  from PIL import Image

  # PIL turns TIFFs when it decodes them, and forgets how they were stored.
  orientation = getattr(image, "tag_v2", {}).get(_ORIENTATION, 1)
  image.load()
  if orientation not in range(2, 9):
    orientation = read_orientation(image)
  upright, notes = turn_upright(image), _count_pages(image, file)
  depth, significant = _find_depth(image, file)
  if image.mode == "F":
    raise ValueError(
      "its pixels are floating-point numbers, of which none is black or white:"
      " save it with 8 or 16 bits per channel"
    )
  if depth > 8:
    is_grey = image.mode.startswith("I")
    values = np.asarray(upright if is_grey else upright.convert("RGB"))
    union = int(np.bitwise_or.reduce(values, axis=None))  # All bits in use.
    if not is_grey:  # PIL decodes the high bytes alone.
      union = union << 8 | 255
    bits = _find_bits(union, depth, significant, bits_per_channel)
    if not is_grey and bits < 16:
      raise ValueError(
        f"its colours have {bits} bits in 16, of which only the high 8 are"
        " decoded: save it with 8 bits per channel"
      )
    if union < 0 or union >> bits:
      raise ValueError(
        f"its values, from {values.min()} to {values.max()}, are not of {bits}"
        " bits: see input.bits_per_channel"
      )
    if union and not union >> (bits - 1) and not significant and depth >= 16:
      notes.append(
        f"values need fewer than {bits} bits, so the image may be too dark; set"
        f" bits_per_channel if the camera has fewer: {union.bit_length()} bits"
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
    raise ValueError(f"its pixels are of PIL's mode {upright.mode}")
  stored_as = f"{image.format} {image.mode}"
  return UprightImage(upright, tuple(notes), orientation, stored_as)


def _count_pages(image, file):
  """Returns a note if a file has several pages or frames, in a list."""
  from PIL import Image

  # Those of MPO, a kind of JPEG, are previews of the first.
  if not getattr(image, "is_animated", False) or image.format == "MPO":
    return []
  number = "number unknown"
  if file is not None:
    # Opened again: counting may lose the page that has been decoded.
    with contextlib.suppress(Exception):
      number = Image.open(file, formats=(image.format,)).n_frames
  return [f"only the first page or frame of several is used: {number}"]


def _find_depth(image, file):
  """Returns a file's bits per channel, and those it declares; 0 for none."""
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
  # The plugin scales grey to 16 bits, and colours to 8.
  return depth, depth if image.format == "HEIF" else 0


def _find_bits(union, depth, significant, given):
  """Returns the bits of a channel's range.

  Args:
    union: of the bits of all values.
    depth: bits that a channel is stored in, more than 8.
    significant: that the file declares, as a PNG's sBIT; 0 for none.
    given: `read`'s bits_per_channel.
  """
  if depth < 16:
    return depth
  if significant:
    # PNG wants values scaled to 16 bits, which not every program does.
    rest = (1 << (16 - significant)) - 1
    return 16 if union >> significant or not union & rest else significant
  if depth > 16 and given == BITS_PER_CHANNEL:
    raise ValueError(
      "its pixels are integers of 32 bits, of which none is white: save it with"
      " 8 or 16 bits per channel, or set input.bits_per_channel to the bits"
      " that are used"
    )
  return min(given, depth)


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


def resize_map(
  anomaly_map: Float[np.ndarray, "h w"], size: tuple[int, int]
) -> Float[np.ndarray, "new_h new_w"]:
  """Returns a map at another width and height, resized bilinearly, float32."""
  from PIL import Image

  image = Image.fromarray(anomaly_map.astype(np.float32))
  return np.array(image.resize(size, Image.Resampling.BILINEAR))
