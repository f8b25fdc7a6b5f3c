"""Draws images with their ground truth and anomaly maps."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cops_jax.typing import Bool, Float, Integer

if TYPE_CHECKING:
  from PIL import Image

TILE_PIXELS = 224
# Colour of outlines, which heat maps do not have and images rarely have.
LINE_COLOR = (0, 235, 255)
_BAND_COLOR = (40, 44, 52)
_LEAST_LETTER_PIXELS = 12
_MAX_OPACITY = 0.7
# Colours from low to high: black, red, light yellow, with rising lightness.
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
  """Returns the bytes of an image file of a kind such as "PNG"."""
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def heat_colors(
  anomaly_map: Float[np.ndarray, "h w"], low: float, high: float
) -> Integer[np.ndarray, "h w 3"]:
  """Returns the colours of a map's values, from low (dark) to high (light).

  The scale is a square root, which makes weak responses visible.
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
  regions: Bool[np.ndarray, "h w"],
) -> Integer[np.ndarray, "h w 3"]:
  """Returns an image with the colours of a map and outlines of regions.

  Higher values of the map, from `low` to `high`, are lighter and more opaque.
  `regions` is True for the pixels of regions to outline.
  """
  from PIL import Image

  # PIL blends bytes, which saves memory for photographs.
  colors = Image.fromarray(heat_colors(anomaly_map, low, high))
  opacity = _levels(anomaly_map, low, high, 255 * _MAX_OPACITY)
  mixed = Image.composite(
    colors, Image.fromarray(image), Image.fromarray(opacity)
  )
  return _outline(np.array(mixed), regions)


def _outline(picture, regions):
  """Draws light lines with dark edges around regions; returns the picture.

  Lines cover pixels of a region only at the border of the picture, so small
  regions remain visible. Lines are wider in larger pictures.
  """
  if not regions.any():
    return picture
  from scipy import ndimage  # Slow to import.

  width = max(2, max(regions.shape) // 250)
  for grown, color in ((width + (width + 1) // 2, 0), (width, LINE_COLOR)):
    near = ndimage.maximum_filter(regions.view(np.uint8), 2 * grown + 1)
    picture[near.view(bool) & ~regions] = color
  border = np.ones_like(regions)
  border[width:-width, width:-width] = False
  picture[regions & border] = LINE_COLOR
  return picture


def pair(
  image: Integer[np.ndarray, "h w 3"],
  anomaly_map: Float[np.ndarray, "h w"],
  threshold: float | None,
  side: int,
) -> Integer[np.ndarray, "new_h new_w 3"]:
  """Returns an image and its overlay with the anomaly map, side by side.

  If the image is more than twice as wide as high, it is above its overlay.

  Args:
    image, anomaly_map: image and map of the same size.
    threshold: pixel threshold; regions that reach it are outlined. The lightest
      colour means twice the threshold or, if it is None, 1.
    side: longest side of the image in pixels; a larger image is shrunk.
  """
  from PIL import Image

  high, threshold = (
    (1.0, math.inf) if threshold is None else (2 * threshold, threshold)
  )
  regions = Image.fromarray(np.uint8(255) * (anomaly_map >= threshold))
  shown, values = Image.fromarray(image), Image.fromarray(anomaly_map)
  for picture in (shown, values):
    picture.thumbnail((side, side), Image.Resampling.BILINEAR)
  image, anomaly_map = np.asarray(shown), np.asarray(values)
  # A pixel belongs to a region if any part of it does, so that none vanishes.
  regions = np.asarray(regions.resize(shown.size, Image.Resampling.BOX)) > 0
  axis = 0 if shown.width > 2 * shown.height else 1
  gap = list(image.shape)
  gap[axis] = max(2, max(shown.size) // 150)
  parts = (
    image,
    np.full(gap, _BAND_COLOR, np.uint8),
    overlay(image, anomaly_map, 0.0, high, regions),
  )
  return np.concatenate(parts, axis)


def caption(
  image: Integer[np.ndarray, "h w 3"], words: Sequence[str], is_marked: bool
) -> Image.Image:
  """Returns an image with words in a band below it.

  Letters are larger below larger images. Below a narrow image, each word has
  its own line, and the picture is widened if necessary. If `is_marked`, the
  band has the colour of outlines.
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
  back, ink = (LINE_COLOR, "black") if is_marked else (_BAND_COLOR, "white")
  picture = Image.new(
    "RGB",
    (max(width, int(right) + size // 2), height + int(bottom) + size // 2),
    _BAND_COLOR,
  )
  picture.paste(Image.fromarray(image))
  draw = ImageDraw.Draw(picture)
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
    image, anomaly_map: image and map of the same size.
    mask: ground truth, 1 for anomalous pixels; None if there is none.
    low, high: ends of the colour scale.
    threshold: pixel threshold of the outlined regions; NaN outlines nothing.

  Returns:
    Square JPEG files of side `TILE_PIXELS` in base64, for embedding in a page:
    "image", "truth" if there is a mask, "map" and "overlay".
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
  tiles["overlay"] = overlay(
    tiles["image"], shown, low, high, shown >= threshold
  )
  files = {
    name: to_file(Image.fromarray(tile), "JPEG", quality=88)
    for name, tile in tiles.items()
  }
  return {name: base64.b64encode(file).decode() for name, file in files.items()}
