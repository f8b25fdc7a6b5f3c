"""Pictures of images and maps."""

import io

import numpy as np
from PIL import Image

from cops_jax.images import drawing


def test_heat_grows_lighter_with_the_value():
  values = np.linspace(-0.2, 1.2, 30)[None]
  colors = drawing.heat_colors(values, 0.0, 1.0)[0].astype(int)
  brightness = colors.sum(axis=-1)
  assert (np.diff(brightness) >= 0).all()
  assert tuple(colors[0]) == (0, 0, 8) and tuple(colors[-1]) == (252, 255, 165)


def test_a_constant_map_is_dark():
  colors = drawing.heat_colors(np.full((2, 2), 0.3), 0.3, 0.3)
  assert (colors == (0, 0, 8)).all()


def tiles(strip):
  image = Image.open(io.BytesIO(strip))
  side = drawing.TILE_PIXELS
  assert image.height == side
  pixels = np.asarray(image.convert("RGB")).astype(int)
  starts = np.linspace(0, image.width - side, 4).round().astype(int)
  return [pixels[:, start : start + side] for start in starts]


def test_strip():
  image = np.full((40, 40, 3), (200, 100, 50), np.uint8)
  mask = np.zeros((40, 40), np.uint8)
  mask[:20] = 1
  anomaly_map = mask.astype(np.float32)
  shown, mask_tile, heat, mixed = tiles(
    drawing.picture_strip(image, mask, anomaly_map, low=0.0, high=1.0)
  )

  def near(tile, top, bottom):
    np.testing.assert_allclose(tile[40, 100], top, atol=8)
    np.testing.assert_allclose(tile[180, 100], bottom, atol=8)

  near(shown, (200, 100, 50), (200, 100, 50))
  near(mask_tile, (255, 255, 255), (0, 0, 0))
  near(heat, (252, 255, 165), (0, 0, 8))
  near(mixed, (236, 208, 130), (200, 100, 50))
  _, mask_tile, _, _ = tiles(
    drawing.picture_strip(image, None, anomaly_map, low=0.0, high=1.0)
  )
  near(mask_tile, (200, 200, 200), (200, 200, 200))
