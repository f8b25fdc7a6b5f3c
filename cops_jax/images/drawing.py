"""Pictures of images with their ground truth, anomaly maps and boxes."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cops_jax.typing import Bool, Float, Integer

if TYPE_CHECKING:
  from PIL import Image

TILE_PIXELS = 224
_OUTLINE_PIXELS = 2
# Colour of outlines and boxes, absent from heat maps and rare in images.
LINE_COLOR = (0, 235, 255)
_BAND_COLOR = (40, 44, 52)
_LEAST_LETTER_PIXELS = 12
_MAX_OPACITY = 0.7
# From low to high: black, red, light yellow, ever lighter.
_HEAT_COLORS = np.array(
  [(0, 0, 8), (60, 15, 110), (180, 40, 90), (245, 125, 20), (252, 255, 165)]
)
_HEAT_TABLE = (
  np.stack(
    [
      np.interp(np.linspace(0, 4, 256), np.arange(5), channel)
      for channel in _HEAT_COLORS.T
    ],
    axis=-1,
  )
  .round()
  .astype(np.uint8)
)


def to_file(image: Image.Image, kind: str, **options: Any) -> bytes:
  """Returns an image as a file's bytes, "PNG" or "JPEG", by PIL's options."""
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def heat_colors(
  anomaly_map: Float[np.ndarray, "h w"], low: float, high: float
) -> Integer[np.ndarray, "h w 3"]:
  """Returns colours of a map's values, from low (dark) to high (light).

  The scale is square-rooted, so that weak responses are visible too.
  """
  return _HEAT_TABLE[_levels(anomaly_map, low, high, 255)]


def _levels(anomaly_map, low, high, highest):
  scaled = (anomaly_map - low) / max(high - low, 1e-12)
  scaled = np.sqrt(np.clip(scaled, 0, 1, out=scaled), out=scaled)
  return np.rint(scaled * highest, out=scaled).astype(np.uint8)


def overlay(
  image: Integer[np.ndarray, "h w 3"],
  anomaly_map: Float[np.ndarray, "h w"],
  low: float,
  high: float,
) -> Integer[np.ndarray, "h w 3"]:
  """Lays a map's colours on an image; higher values are more opaque."""
  from PIL import Image

  # Bytes alone: photographs have many pixels.
  colors = Image.fromarray(heat_colors(anomaly_map, low, high))
  opacity = _levels(anomaly_map, low, high, 255 * _MAX_OPACITY)
  return np.asarray(
    Image.composite(colors, Image.fromarray(image), Image.fromarray(opacity))
  )


def outlines(
  regions: Bool[np.ndarray, "h w"], width: int
) -> Bool[np.ndarray, "h w"]:
  """Returns the regions' pixels at most `width` from a pixel outside.

  Pixels beyond the picture's border are outside.
  """
  from scipy import ndimage  # Slow to import.

  square = np.ones((2 * width + 1, 2 * width + 1))
  return regions & ~ndimage.binary_erosion(regions, square)


def annotate(
  image: Integer[np.ndarray, "h w 3"],
  boxes: Sequence[tuple[int, int, int, int]],
  words: Sequence[str],
  is_marked: bool,
) -> Image.Image:
  """Returns an image with boxes on it and words in a band below it.

  Lines and letters grow with the image. A narrow image has one word a line, and
  the picture is wide enough for it.

  Args:
    image: to draw on.
    boxes: see `thresholds.find_boxes`.
    words: to write.
    is_marked: whether the band has the boxes' colour.
  """
  from PIL import Image, ImageDraw, ImageFont

  height, width = image.shape[:2]
  size = max(_LEAST_LETTER_PIXELS, min(width // 24, height // 12))
  font = ImageFont.load_default(size)
  text = "   ".join(words)
  if font.getlength(text) + size > width:
    text = "\n".join(words)
  _, _, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).textbbox(
    (size // 2, size // 2), text, font
  )
  picture = Image.new(
    "RGB",
    (max(width, int(right) + size // 2), height + int(bottom) + size // 2),
    _BAND_COLOR,
  )
  picture.paste(Image.fromarray(image))
  draw = ImageDraw.Draw(picture)
  line = max(1, size // 8)
  for left, top, right, bottom in boxes:
    # Around the region; a dark line keeps it apart from a light image.
    for grown, color in ((2 * line, "black"), (line, LINE_COLOR)):
      place = (left - grown, top - grown, right + grown - 1, bottom + grown - 1)
      draw.rectangle(place, outline=color, width=line)
  back, ink = (LINE_COLOR, "black") if is_marked else (_BAND_COLOR, "white")
  draw.rectangle((0, height, *picture.size), fill=back)
  draw.text((size // 2, height + size // 2), text, ink, font)
  return picture


def picture_tiles(
  image: Integer[np.ndarray, "h w 3"],
  mask: Integer[np.ndarray, "h w"] | None,
  anomaly_map: Float[np.ndarray, "h w"],
  *,
  low: float,
  high: float,
  threshold: float,
) -> dict[str, str]:
  """Returns pictures of an image, its ground truth and its anomaly map.

  Args:
    image, anomaly_map: of one size.
    mask: 1 is anomalous; None if there is none.
    low, high: the ends of the colour scale.
    threshold: regions that reach it are outlined; NaN outlines none.

  Returns:
    JPEG files of side `TILE_PIXELS` in base64, as pages embed them: "image",
    "truth" if there is a mask, "map" and "overlay".
  """
  from PIL import Image

  def scale(array, resampling=Image.Resampling.BILINEAR):
    tile = Image.fromarray(array).resize((TILE_PIXELS,) * 2, resampling)
    return np.asarray(tile)

  shown = scale(anomaly_map.astype(np.float32))
  tiles = {"image": scale(image)}
  if mask is not None:
    white = np.uint8(255) * (mask > 0)
    tiles["truth"] = scale(white, Image.Resampling.NEAREST)
  tiles["map"] = heat_colors(shown, low, high)
  mixed = overlay(tiles["image"], shown, low, high).copy()
  mixed[outlines(shown >= threshold, _OUTLINE_PIXELS)] = LINE_COLOR
  tiles["overlay"] = mixed
  files = {
    name: to_file(Image.fromarray(tile), "JPEG", quality=88)
    for name, tile in tiles.items()
  }
  return {name: base64.b64encode(file).decode() for name, file in files.items()}
