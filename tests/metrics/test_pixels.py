"""Pixel metrics: bins, merging of states, and rejected maps."""

import numpy as np
import pytest

from cops_jax import metrics
from cops_jax.metrics import pixels
from helpers.anomaly_maps import random_maps


def gather(maps, masks, mode="binned"):
  state = metrics.PIXEL_METRICS_MODES[mode]()
  for anomaly_map, mask in zip(maps, masks, strict=True):
    state.add(anomaly_map, mask)
  return state


def test_a_merged_state_has_the_higher_floor(monkeypatch):
  """Below its floor, a state does not store all scores."""
  monkeypatch.setattr(pixels, "_NUM_HIGHEST", 100)
  first = np.repeat(np.float32([0.5, 0.8, 0.9]), (690, 150, 60)).reshape(30, 30)
  second = np.full((5, 8), 0.6, np.float32)
  maps = [first, second]
  masks = [
    np.arange(array.size).reshape(array.shape) % 3 == 0 for array in maps
  ]
  merged = gather(maps[:1], masks[:1]).merge(gather(maps[1:], masks[1:]))
  exact = gather(maps, masks, "exact")
  assert merged.count().auroc() == pytest.approx(exact.count().auroc())


def test_states_merge_exactly_in_any_order():
  maps, masks = random_maps(number=9, side=40)
  together = gather(maps, masks)
  backward = gather(maps[::-1], masks[::-1])
  parts = [gather(maps[i::4], masks[i::4]) for i in range(4)]
  merged = parts[2].merge(parts[0]).merge(parts[3].merge(parts[1]))
  for other in (backward, merged, metrics.PixelMetrics().merge(together)):
    np.testing.assert_array_equal(other.counts, together.counts)
    np.testing.assert_array_equal(other.overlap, together.overlap)
    assert other.count().compute() == together.count().compute()
  assert together.counts.sum() == masks.size
  assert together.counts[1].sum() == masks.sum()
  first, second, whole = (
    gather(maps[part], masks[part], "exact")
    for part in (slice(4), slice(4, None), slice(None))
  )
  merged = first.merge(second).count().compute()
  assert merged == pytest.approx(whole.count().compute(), abs=1e-12)


@pytest.mark.parametrize(
  "value, message, modes",
  (
    (np.nan, "NaN", ("binned", "exact")),
    (1.5, "to 1.5, outside", ("binned",)),
    (-0.5, "from -0.5", ("binned",)),
    (np.inf, "outside", ("binned",)),
  ),
)
def test_a_rejected_map_changes_nothing(value, message, modes):
  for mode in modes:
    maps, masks = random_maps(number=3, side=16)
    state = gather(maps, masks, mode)
    before = state.count().compute()
    anomaly_map = np.full((2, 2), 0.5, np.float32)
    anomaly_map[1, 0] = value
    with pytest.raises(ValueError, match=message):
      state.add(anomaly_map, np.ones((2, 2), bool))
    assert state.count().compute() == before


def test_scores_slightly_outside_0_to_1_are_clipped():
  """Devices that multiply in bfloat16 return such scores."""
  anomaly_map = np.array([[-0.004, 0.5, 1.004]], np.float32)
  state = gather([anomaly_map], [np.array([[False, False, True]])])
  assert state.count().auroc() == 1
