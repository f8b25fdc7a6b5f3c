"""States that gather pixels: their bins and regions, merging and storing them.

Also what they refuse. The metrics' values are tested elsewhere.
"""

import numpy as np
import pytest

from cops_jax import metrics
from cops_jax.metrics import pixels
from helpers.anomaly_maps import gather, random_maps

MODES = metrics.PIXEL_METRICS_MODES


def test_regions_touch_by_corners():
  mask = np.zeros((7, 9), bool)
  mask[[2, 3, 4, 2, 6], [2, 3, 4, 6, 8]] = True
  np.testing.assert_array_equal(pixels._region_areas(mask), [3, 1, 3, 3, 1])


def test_large_regions_weigh_as_much_as_small_ones():
  """The weights' rounding stays below 1e-6 for a region of a million pixels."""
  mask = np.ones((1024, 1025), bool)
  mask[:, 1023] = False
  mask[1:, 1024] = False
  anomaly_map = np.full(mask.shape, 0.25, np.float32)
  anomaly_map[0, 1024] = 0.75
  state = gather([anomaly_map], [mask])
  shares = state.overlap[state.overlap > 0] / state.overlap.sum()
  np.testing.assert_allclose(shares, [0.5, 0.5], rtol=0, atol=1e-6)


def test_states_merge_exactly_in_any_order():
  maps, masks = random_maps(number=9, side=40)
  together = gather(maps, masks)
  backward = gather(maps[::-1], masks[::-1])
  parts = [gather(maps[i::4], masks[i::4]) for i in range(4)]
  merged = parts[2].merge(parts[0]).merge(parts[3].merge(parts[1]))
  empty = metrics.PixelMetrics()
  for other in (backward, merged, empty.merge(together)):
    np.testing.assert_array_equal(other.counts, together.counts)
    np.testing.assert_array_equal(other.overlap, together.overlap)
    assert other.compute() == together.compute()
  assert together.counts.sum() == masks.size
  assert together.counts[1].sum() == masks.sum()
  exact = gather(maps[:4], masks[:4], "exact").merge(
    gather(maps[4:], masks[4:], "exact")
  )
  assert exact.compute() == pytest.approx(
    gather(maps, masks, "exact").compute(), abs=1e-12
  )


def test_bins_keep_the_order():
  ends = np.geomspace(2**-31, 0.5, 20_000)
  scores = np.concatenate([[0.0, 1e-30, 0.5, 1.0], ends, 1 - ends])
  scores = np.unique(scores.astype(np.float32))
  bins = pixels.score_bins(scores)
  steps = np.diff(bins)
  assert (steps >= 0).all()
  assert bins.min() == 0 and bins.max() == pixels.NUM_BINS - 1
  # What shares a bin is close, and closer towards both ends.
  gaps = np.diff(scores)[steps == 0]
  distances = np.minimum(scores, 1 - scores)[1:][steps == 0]
  assert (gaps <= np.maximum(distances / 2000, 2**-30)).all()
  assert gaps.max() <= 2**-16


def test_lowest_score_of_a_bin():
  numbers = np.r_[0:5, 4000:4005, np.arange(0, pixels.NUM_BINS, 4999)]
  for number in numbers.tolist():
    score = np.float32(pixels.lowest_score(number))
    below = np.nextafter(score, np.float32(-1))
    bins = pixels.score_bins(np.array([score, below]))
    assert bins[0] >= number and (bins[1] < number or number == 0)


@pytest.mark.parametrize(
  "value, message, modes",
  (
    (np.nan, "NaN", MODES),
    (1.5, "to 1.5, not in", ("binned",)),
    (-0.5, "from -0.5", ("binned",)),
    (np.inf, "not in", ("binned",)),
  ),
)
def test_bad_maps_change_nothing(value, message, modes):
  for mode in modes:
    maps, masks = random_maps(number=3, side=16)
    state = gather(maps, masks, mode)
    before = state.compute()
    anomaly_map = np.full((2, 2), 0.5, np.float32)
    anomaly_map[1, 0] = value
    with pytest.raises(ValueError, match=message):
      state.add(anomaly_map, np.ones((2, 2), bool))
    assert state.compute() == before


@pytest.mark.parametrize(
  "mask", (np.ones((2, 3), bool), np.ones((2, 2), np.uint8))
)
def test_other_masks_are_refused(mask):
  """Outside of tests nothing else checks the annotations."""
  with pytest.raises(
    ValueError, match="not boolean of the anomaly map's shape"
  ):
    pixels._check(np.zeros((2, 2), np.float32), mask)


def test_rounding_past_the_ends_is_clipped():
  """As devices that multiply in bfloat16 give."""
  anomaly_map = np.array([[-0.004, 0.5, 1.004]], np.float32)
  state = gather([anomaly_map], [np.array([[False, False, True]])])
  assert state.compute()["pixel_auroc"] == 1


def test_unknown_mode_is_refused():
  with pytest.raises(ValueError, match="'best' is not one of binned, exact"):
    metrics.make_pixel_metrics("best")
