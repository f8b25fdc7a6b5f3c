"""Positions of tiles, and blending of their maps without seams."""

import numpy as np
import pytest

from cops_jax.errors import InputError
from cops_jax.images import read, tiles
from cops_jax.images.decoding import resize_map
from helpers.images import make_image

GRIDS = ((1, 1), (1, 2), (2, 3), (5, 4), (8, 8))


@pytest.mark.parametrize(
  "text, normal, grid",
  (
    ("", "", (1, 1)),
    ("1x1", "", (1, 1)),
    ("2x3", "2x3", (2, 3)),
    ("08x1", "8x1", (8, 1)),
  ),
)
def test_grids_are_parsed_and_normalized(text, normal, grid):
  assert tiles.normalize(text) == normal
  assert tiles.choose_grid(normal, (640, 480), 48) == grid


@pytest.mark.parametrize(
  "text", ("3", "0x2", "9x1", "2x", "2X3", "-1x2", "2x3x4", " ")
)
def test_bad_grids_are_refused(text):
  assert tiles.parse_grid(text) is None
  with pytest.raises(InputError, match="expected auto or rows x columns from"):
    tiles.normalize(text)


@pytest.mark.parametrize(
  "size, side, grid",
  (
    ((518, 300), 518, (1, 1)),
    ((1036, 1037), 518, (2, 1)),
    ((4000, 3000), 518, (4, 5)),
    ((8000, 2000), 518, (2, 8)),
    ((8000, 2000), 112, (2, 8)),
    ((2000, 8000), 112, (8, 2)),
    ((8000, 8000), 112, (8, 8)),
    ((1, 1), 518, (1, 1)),
    ((20_000, 100), 518, (1, 8)),
  ),
)
def test_auto_chooses_tiles_for_each_side(size, side, grid):
  """It chooses the fewest tiles that keep half of the pixels, but at most 8."""
  assert tiles.choose_grid("auto", size, side) == grid
  longest = max(2 * side, max(size) / (1 + 0.75 * 7))
  for length, number in zip(size, grid[::-1], strict=True):
    for fewer in range(1, number):
      assert length / (1 + 0.75 * (fewer - 1)) > longest
    assert length / (1 + 0.75 * (number - 1)) <= longest


def test_neighbours_share_a_quarter_of_a_tile():
  """The values of the image are its columns."""
  ramp = np.linspace(0, 255, 2600).round().astype(np.uint8)
  image = read(np.broadcast_to(ramp, (10, 2600)).copy())
  parts = tiles.cut(image, (1, 3), 100)
  assert parts.shape == (3, 100, 100, 3) and parts.dtype == np.uint8
  lefts, rights = parts[:, 5, 0, 0] / 255, parts[:, 5, -1, 0] / 255
  np.testing.assert_allclose(lefts, (0, 0.3, 0.6), atol=0.01)
  np.testing.assert_allclose(rights, (0.4, 0.7, 1), atol=0.01)
  corner = make_image(0, 90, 70).crop((0, 0, 52, 40))  # 4/7 of each side.
  part = tiles.cut(read(make_image(0, 90, 70)), (2, 2), 48)[0]
  difference = read(corner).resize(48).astype(int) - part
  assert np.abs(difference).mean() < 3


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("size", ((1, 1), (5, 48), (320, 211)))
def test_the_blend_of_constant_maps_is_constant(grid, size):
  maps = np.full((grid[0] * grid[1], 48, 48), 0.3, np.float32)
  blended = tiles.blend(list(maps), grid, size)
  assert blended.shape == size[::-1] and blended.dtype == np.float32
  np.testing.assert_allclose(blended, 0.3, atol=1e-6)


def test_neighbours_are_weighted_by_raised_cosines():
  """Two tiles of 4/7 of the width overlap from 3/7 to 4/7."""
  maps = [np.full((48, 48), value, np.float32) for value in (0, 1)]
  blended = tiles.blend(maps, (1, 2), (700, 1))[0]
  x = (np.arange(300, 400) + 0.5) / 400
  left, right = np.sin(np.pi * x) ** 2, np.sin(np.pi * (x - 0.75)) ** 2
  np.testing.assert_allclose(
    blended[300:400], right / (left + right), atol=1e-6
  )
  assert not blended[:300].any() and (blended[400:] == 1).all()


@pytest.mark.parametrize("grid", GRIDS[2:])
def test_cutting_and_blending_preserves_positions(grid):
  """A smooth field is cut as an image and blended as maps."""
  y, x = np.mgrid[:200, :300] / 40
  field = 127 + 60 * np.sin(x) + 60 * np.cos(y)
  image = read(field.round().astype(np.uint8))
  parts = tiles.cut(image, grid, 48)[..., 0].astype(np.float32)
  blended = tiles.blend(list(parts), grid, image.size)
  assert np.abs(blended - field).max() < 3


def test_the_whole_image_and_tiles_are_averaged():
  rng = np.random.default_rng(0)
  maps = list(rng.random((7, 48, 48), np.float32))
  found = list(zip((0.5, 0.1, 0.7, 0.2, 0.3, 0.9, 0.4), maps, strict=True))
  for size in ((130, 90), (48, 48), (17, 31)):
    score, whole = tiles.join(found[:1], (1, 1), size)
    assert score == 0.5
    np.testing.assert_array_equal(whole, resize_map(maps[0], size))
    np.testing.assert_allclose(
      tiles.blend(maps[:1], (1, 1), size), whole, atol=1e-4
    )
    score, joined = tiles.join(found, (2, 3), size)
    assert score == pytest.approx((0.5 + 0.9) / 2)
    want = (whole + tiles.blend(maps[1:], (2, 3), size)) / 2
    np.testing.assert_allclose(joined, want, atol=1e-6)
