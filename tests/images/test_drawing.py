"""Drawing images and maps."""

import base64
import io
import math

import numpy as np
import pytest
from PIL import Image

from cops_jax.images import drawing


def pixels(file):
  file = io.BytesIO(base64.b64decode(file))
  return np.asarray(Image.open(file).convert("RGB")).astype(int)


@pytest.fixture
def tiles():
  """Draws an image of one colour whose upper half is a detected anomaly."""
  image = np.full((40, 40, 3), (200, 100, 50), np.uint8)
  mask = np.zeros((40, 40), np.uint8)
  mask[:20] = 1
  found = mask.astype(np.float32)

  def draw(mask=mask, threshold=0.5):
    files = drawing.picture_tiles(
      image, mask, found, low=0.0, high=1.0, threshold=threshold
    )
    return {name: pixels(file) for name, file in files.items()}

  return draw


def test_pictures_show_image_truth_map_and_overlay(tiles):
  shown = tiles()
  assert list(shown) == ["image", "truth", "map", "overlay"]
  for name, top, bottom in (
    ("image", (200, 100, 50), (200, 100, 50)),
    ("truth", (255, 255, 255), (0, 0, 0)),
    ("map", (252, 255, 165), (0, 0, 8)),
    ("overlay", (236, 208, 130), (200, 100, 50)),
  ):
    assert shown[name].shape == (drawing.TILE_PIXELS, drawing.TILE_PIXELS, 3)
    np.testing.assert_allclose(shown[name][40, 100], top, atol=8)
    np.testing.assert_allclose(shown[name][180, 100], bottom, atol=8)
  assert list(tiles(mask=None)) == ["image", "map", "overlay"]


def test_the_overlay_outlines_regions_that_reach_the_threshold(tiles):
  def is_line(tile):
    return np.abs(tile - drawing.LINE_COLOR).max(axis=-1) < 80

  half = drawing.TILE_PIXELS // 2
  line = is_line(tiles()["overlay"])
  assert line[0].all() and line[half - 4 : half + 4, 20:200].any(axis=0).all()
  assert not line[half + 8 :].any() and not line[10 : half - 8, 10:-10].any()
  for threshold in (math.nan, 1.1):
    assert not is_line(tiles(threshold=threshold)["overlay"]).any()


@pytest.mark.parametrize(
  "width, height, is_marked",
  ((3000, 2000, False), (120, 120, True), (40, 300, False)),
)
def test_a_caption_below_the_image_is_readable(width, height, is_marked):
  image = np.full((height, width, 3), 128, np.uint8)
  picture = np.asarray(
    drawing.caption(image, ["anomaly", "score 0.874"], is_marked)
  )
  np.testing.assert_array_equal(picture[:height, :width], image)
  band = picture[height:]
  back, ink = band[-1, -1], (np.zeros(3), np.full(3, 255))[not is_marked]
  assert (tuple(back) == drawing.LINE_COLOR) == is_marked
  rows, columns = np.nonzero((np.abs(band - ink) < 64).all(axis=-1))
  # All letters have a fixed share of the image or the smallest size.
  assert np.ptp(rows) >= max(8, min(width, height) / 60)
  assert columns.max() < band.shape[1] - 2 and rows.max() < len(band) - 2
  assert band.shape[0] <= max(0.15 * height, 45)


def test_outlines_cover_no_pixel_of_a_region():
  """Only at the border of the picture, lines are inside the region."""
  image = np.full((300, 300, 3), 255, np.uint8)
  for rows, columns in ((slice(60, 61), slice(50, 51)), (slice(0, 40),) * 2):
    found = np.zeros((300, 300), np.float32)
    found[rows, columns] = 1e-3
    shown = drawing.overlay(image, found, 0.0, 1e9, found > 0)
    line = (shown == drawing.LINE_COLOR).all(-1)
    assert (shown[~line & (found > 0)] > 250).all()
    assert line[rows, columns.stop].all() and line[rows.stop, columns].all()
    assert not shown[rows, columns.stop + 2].any()  # A dark edge.
    assert line[0, 0] == (rows.start == 0)


@pytest.mark.parametrize("width, height", ((90, 60), (150, 60), (12, 60)))
def test_an_image_and_its_overlay_are_placed_by_their_shape(width, height):
  """A wide image is above its overlay, any other to the left of it."""
  image = np.full((height, width, 3), 200, np.uint8)
  found = np.zeros((height, width), np.float32)
  found[:, : width // 2] = 0.5
  for threshold, side, factor in ((0.25, 4096, 1), (None, 30, 30)):
    shown = drawing.pair(image, found, threshold, side)
    size = np.array((height, width))
    if factor > 1:
      size = np.maximum(size * side // max(size), 1)
    axis = 0 if width > 2 * height else 1
    whole, gap = size.copy(), 2
    whole[axis] = 2 * size[axis] + gap
    assert shown.shape[:2] == tuple(whole)
    original, mapped = np.split(shown, [size[axis]], axis)
    np.testing.assert_array_equal(original, 200)
    has_line = (mapped == drawing.LINE_COLOR).all(-1).any()
    assert has_line == (threshold is not None) and (mapped == 200).any()


def test_a_small_region_is_outlined_in_a_small_picture():
  image = np.full((600, 600, 3), 200, np.uint8)
  found = np.zeros((600, 600), np.float32)
  found[300:304, 300:304] = 0.5
  shown = drawing.pair(image, found, 0.45, 60)
  assert shown.shape == (60, 122, 3)
  assert (shown == drawing.LINE_COLOR).all(-1).any()
