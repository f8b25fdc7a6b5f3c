"""Pictures of evaluated images: what there was to find and what was found."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from cops_jax.typing import Float, Integer

if TYPE_CHECKING:
  from PIL import Image

TILE_PIXELS = 224
_MARGIN_PIXELS = 4
_MAX_OPACITY = 0.7
# From low to high; black to white through red, and grows lighter all the way.
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
  """An image as the bytes of a file, "PNG" or "JPEG", by PIL's options."""
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def heat_colors(
  anomaly_map: Float[np.ndarray, "h w"], low: float, high: float
) -> Integer[np.ndarray, "h w 3"]:
  """Colours of a map's values, from low (dark) to high (light).

  Square-rooted, so that weak responses show too.
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
  """The image under the map's colours, the more opaque the higher the value."""
  from PIL import Image

  # Bytes alone: photographs have many pixels.
  colors = Image.fromarray(heat_colors(anomaly_map, low, high))
  opacity = _levels(anomaly_map, low, high, 255 * _MAX_OPACITY)
  return np.asarray(
    Image.composite(colors, Image.fromarray(image), Image.fromarray(opacity))
  )


def picture_strip(
  image: Integer[np.ndarray, "h w 3"],
  mask: Integer[np.ndarray, "h w"] | None,
  anomaly_map: Float[np.ndarray, "h w"],
  *,
  low: float,
  high: float,
) -> bytes:
  """Image, mask, anomaly map and overlay side by side.

  Args:
    image, anomaly_map: of one size.
    mask: 1 is anomalous; None leaves its place grey.
    low, high: the ends of the colour scale.

  Returns:
    A JPEG file's bytes.
  """
  from PIL import Image

  colors = heat_colors(anomaly_map, low, high)
  if mask is None:
    mask_tile = np.full_like(image, 200)
  else:
    mask_tile = np.repeat(np.uint8(255) * (mask > 0)[..., None], 3, axis=-1)
  tiles = (image, mask_tile, colors, overlay(image, anomaly_map, low, high))
  width = len(tiles) * (TILE_PIXELS + _MARGIN_PIXELS) - _MARGIN_PIXELS
  strip = Image.new("RGB", (width, TILE_PIXELS), "white")
  for index, tile in enumerate(tiles):
    resampling = Image.NEAREST if tile is mask_tile else Image.BILINEAR
    scaled = Image.fromarray(tile).resize((TILE_PIXELS,) * 2, resampling)
    strip.paste(scaled, (index * (TILE_PIXELS + _MARGIN_PIXELS), 0))
  return to_file(strip, "JPEG", quality=88)
