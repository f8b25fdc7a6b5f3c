"""Metrics against scikit-learn, plain reference code and hand-worked values."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from cops_jax import metrics
from helpers.anomaly_maps import gather, random_maps, squares

MODES = metrics.PIXEL_METRICS_MODES


def neighbours(row, column):
  return [(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]


def regions_of(mask):
  """Sets of pixels that touch by an edge or a corner, by flooding."""
  left = {(int(row), int(column)) for row, column in np.argwhere(mask)}
  regions = []
  while left:
    region, front = set(), {left.pop()}
    while front:
      region |= front
      front = {near for pixel in front for near in neighbours(*pixel)} & left
      left -= front
    regions.append(region)
  return regions


def brute_force_aupro(maps, masks, limit=0.3):
  """Threshold by threshold, region by region."""
  regions = [
    [anomaly_map[pixel] for pixel in region]
    for anomaly_map, mask in zip(maps, masks, strict=True)
    for region in regions_of(mask)
  ]
  normal = maps[~masks]
  area, last_rate, last_overlap = 0.0, 0.0, 0.0
  for threshold in sorted(set(maps.reshape(-1).tolist()), reverse=True):
    rate = np.mean(normal >= threshold)
    overlap = np.mean(
      [np.mean(np.array(region) >= threshold) for region in regions]
    )
    if rate > limit:
      part = (limit - last_rate) / (rate - last_rate)
      overlap = last_overlap + part * (overlap - last_overlap)
      return (area + (limit - last_rate) * (last_overlap + overlap) / 2) / limit
    area += (rate - last_rate) * (last_overlap + overlap) / 2
    last_rate, last_overlap = rate, overlap
  return area / limit


def reference(scores, labels, level):
  """scikit-learn's values; F1 from its precision and recall."""
  precision, recall, _ = sklearn_metrics.precision_recall_curve(labels, scores)
  f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
  return {
    f"{level}_auroc": sklearn_metrics.roc_auc_score(labels, scores),
    f"{level}_ap": sklearn_metrics.average_precision_score(labels, scores),
    f"{level}_f1_max": f1.max(),
  }


def pixel_reference(maps, masks):
  return reference(maps.reshape(-1), masks.reshape(-1), "pixel")


def test_images_by_hand():
  """Anomalous 0.9 and 0.4, normal 0.4 and 0.1."""
  scores = np.array([0.9, 0.4, 0.4, 0.1])
  labels = np.array([True, True, False, False])
  assert metrics.image_metrics(scores, labels) == pytest.approx(
    {
      # Pairs: 1 + 1 for the first, 1/2 + 1 for the tie.
      "image_auroc": 3.5 / 4,
      # Recall 1/2 at precision 1, then 1 at 2/3.
      "image_ap": 0.5 * 1 + 0.5 * 2 / 3,
      # From 0.4 on two are right and one is wrong.
      "image_f1_max": 2 * 2 / (2 * 2 + 1),
    }
  )
  assert metrics.best_image_threshold(scores, labels) == 0.4
  curves = metrics.image_curves(scores, labels)
  np.testing.assert_allclose(
    curves["roc"], ([0, 0, 0.5, 1], [0, 0.5, 1, 1]), atol=1e-12
  )
  np.testing.assert_allclose(
    curves["pr"], ([0.5, 1, 1], [1, 2 / 3, 0.5]), atol=1e-12
  )


@pytest.mark.parametrize("mode", MODES)
def test_pixels_by_hand(mode):
  """A region with 0.9 and 0.5, one with 0.8; normal 0.7, 0.6, eight 0.1."""
  anomaly_map = np.full((1, 13), 0.1, np.float32)
  anomaly_map[0, [0, 1, 3, 5, 6]] = 0.9, 0.5, 0.8, 0.7, 0.6
  mask = np.zeros((1, 13), bool)
  mask[0, [0, 1, 3]] = True
  state = gather([anomaly_map], [mask], mode)
  assert state.compute() == pytest.approx(
    {
      "pixel_auroc": (10 + 10 + 8) / 30,
      "pixel_ap": (1 + 1 + 3 / 5) / 3,
      "pixel_f1_max": 2 * 2 / (2 * 2 + 1),  # At 0.8 one is missing.
      # Overlap (1/2 + 1) / 2 until two of ten are wrong, then 1.
      "pixel_aupro": (0.2 * 0.75 + 0.1 * 1) / 0.3,
      "pixel_aupro_200": 0.75,  # From no false positives to 0.2, as if to 1.
    },
    abs=1e-6,
  )
  threshold = state.best_threshold()
  assert threshold == pytest.approx(0.8, abs=2**-16)
  assert (anomaly_map >= threshold).sum() == 2
  rate, overlap = state.curves()["pro"]
  np.testing.assert_allclose(rate, [0, 0, 0, 0.1, 0.2, 0.2, 1], atol=1e-6)
  np.testing.assert_allclose(
    overlap, [0, 0.25, 0.75, 0.75, 0.75, 1, 1], atol=1e-6
  )
  assert state.num_pixels == (10, 3)


@pytest.mark.parametrize("mode", MODES)
def test_aupro_interpolates_at_its_limit(mode):
  """From (0, 0) straight to (1/2, 1): 0.6 at 0.3."""
  anomaly_map = np.array([[0.5, 0.5, 0.25]], np.float32)
  mask = np.array([[True, False, False]])
  actual = gather([anomaly_map], [mask], mode).compute()["pixel_aupro"]
  assert actual == pytest.approx(0.3 * 0.6 / 2 / 0.3)


@pytest.mark.parametrize("decimals", (1, 2, 8))
def test_image_metrics_are_sklearns(decimals):
  rng = np.random.default_rng(decimals)
  labels = rng.random(500) < 0.3
  scores = np.round(rng.normal(labels * 0.7), decimals)
  actual = metrics.image_metrics(scores, labels)
  assert actual == pytest.approx(reference(scores, labels, "image"), abs=1e-12)
  threshold = metrics.best_image_threshold(scores, labels)
  assert sklearn_metrics.f1_score(labels, scores >= threshold) == pytest.approx(
    actual["image_f1_max"]
  )


@pytest.mark.parametrize(
  "spread",
  (
    {},
    dict(center=-14, scale=4),  # Next to 0.
    dict(center=14, scale=4),  # Next to 1.
    dict(center=0, scale=8),  # Next to both.
    dict(center=0, scale=0.1),  # Nearly all in 0.5 +- 0.1.
    dict(shift=0),
  ),
  ids=str,
)
def test_pixel_metrics_are_sklearns(spread):
  maps, masks = random_maps(**spread)
  expected = pixel_reference(maps, masks)
  exact = gather(maps, masks, "exact").compute()
  actual = gather(maps, masks).compute()
  assert exact == pytest.approx(
    expected | {name: exact[name] for name in exact if "aupro" in name},
    abs=1e-12,
  )
  assert actual == pytest.approx(exact, abs=1e-4)


def test_bins_err_within_the_stated_bounds():
  """Also where all scores are in few bins."""
  for center, scale in ((-3, 0.1), (0, 0.1), (0, 1e-2), (0, 1e-4), (0, 1e-5)):
    maps, masks = random_maps(center=center, scale=scale)
    state = gather(maps, masks)
    actual = state.compute()
    expected = gather(maps, masks, "exact").compute()
    num_bins = np.count_nonzero(state.counts.any(axis=0))
    assert actual == pytest.approx(expected, abs=max(1e-4, 2 / num_bins))
    normal, anomalous = state.counts / state.counts.sum(axis=1, keepdims=True)
    error = abs(actual["pixel_auroc"] - expected["pixel_auroc"])
    assert error <= normal @ anomalous / 2
  assert num_bins < 100  # The last scale has what the test is about.


@pytest.mark.parametrize("decimals", (1, 3))
def test_ties_are_exact(decimals):
  """Rounded scores are in bins of their own."""
  maps, masks = random_maps()
  maps = np.round(maps, decimals)
  actual = gather(maps, masks).compute()
  expected = gather(maps, masks, "exact").compute()
  assert actual == pytest.approx(expected, abs=1e-6)
  del expected["pixel_aupro"], expected["pixel_aupro_200"]
  assert pixel_reference(maps, masks) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("value", (0.0, 1e-20, 0.3, 0.5, 1 - 2**-24, 1.0))
@pytest.mark.parametrize("mode", MODES)
def test_constant_maps(value, mode):
  masks = squares(3, 16)
  maps = np.full(masks.shape, value, np.float32)
  share = masks.mean()
  state = gather(maps, masks, mode)
  assert state.compute() == pytest.approx(
    {
      "pixel_auroc": 0.5,
      "pixel_ap": share,
      "pixel_f1_max": 2 * share / (1 + share),
      "pixel_aupro": 0.15,
      "pixel_aupro_200": 0.0,
    }
  )
  assert (maps >= state.best_threshold()).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("decimals", (1, 2))
def test_aupro_is_the_brute_force_one(decimals, mode):
  """Regions that touch by corners only and images with none are included."""
  rng = np.random.default_rng(decimals)
  masks = rng.random((5, 24, 24)) < 0.15
  masks[0] = False
  masks[1] = squares(2, 24)[1]
  maps = np.clip(rng.normal(0.3 + 0.2 * masks, 0.2), 0, 1)
  maps = np.round(maps, decimals).astype(np.float32)
  actual = gather(maps, masks, mode).compute()["pixel_aupro"]
  assert actual == pytest.approx(brute_force_aupro(maps, masks), abs=1e-9)
  flat = masks & ~np.roll(masks, 1, axis=-1)  # Other regions, another value.
  other = gather(maps, flat, mode).compute()["pixel_aupro"]
  assert other == pytest.approx(brute_force_aupro(maps, flat), abs=1e-9)
  assert abs(other - actual) > 1e-3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scale", (0.1, 1, 3))
def test_aupro_at_thresholds_is_the_brute_force_one(scale, mode):
  maps, masks = random_maps(number=4, side=40, scale=scale)
  regions = [
    [anomaly_map[pixel] for pixel in region]
    for anomaly_map, mask in zip(maps, masks, strict=True)
    for region in regions_of(mask)
  ]
  low, high = maps.min(), maps.max()
  rates, overlaps = [], []
  for step in range(200):
    threshold = low + step * (high - low) / 200
    rates.append(np.mean(maps[~masks] > threshold))
    overlaps.append(
      np.mean([np.mean(np.array(region) > threshold) for region in regions])
    )
  rates, overlaps = np.array(rates), np.array(overlaps)
  kept = rates < 0.3
  x = rates[kept] - rates[kept].min()
  expected = sklearn_metrics.auc(x / x.max(), overlaps[kept])
  actual = gather(maps, masks, mode).compute()["pixel_aupro_200"]
  assert actual == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_best_threshold_has_the_largest_f1(mode):
  for center in (-14, -3, 0, 8):
    maps, masks = random_maps(number=3, side=64, center=center, scale=3)
    state = gather(maps, masks, mode)
    actual = sklearn_metrics.f1_score(
      masks.reshape(-1), maps.reshape(-1) >= state.best_threshold()
    )
    assert actual == pytest.approx(state.compute()["pixel_f1_max"], abs=1e-12)


def largest_distance(points, x, y):
  """Of points from the polygon through x and y."""
  starts = np.stack([x[:-1], y[:-1]], axis=-1)
  steps = np.stack([np.diff(x), np.diff(y)], axis=-1)
  offsets = points[:, None] - starts
  lengths = np.maximum((steps**2).sum(axis=-1), 1e-30)
  position = np.clip((offsets * steps).sum(axis=-1) / lengths, 0, 1)
  nearest = starts + position[..., None] * steps
  return np.linalg.norm(points[:, None] - nearest, axis=-1).min(axis=1).max()


def test_thinned_curves_lose_nothing_visible():
  maps, masks = random_maps()
  labels, scores = masks.reshape(-1), maps.reshape(-1)
  curves = gather(maps, masks).curves()
  rate, found, _ = sklearn_metrics.roc_curve(labels, scores)
  precision, recall, _ = sklearn_metrics.precision_recall_curve(labels, scores)
  full = {
    "roc": (rate, found),
    "pr": (recall[:-1:7], precision[:-1:7]),  # The last point is added.
  }
  assert set(curves) == {"roc", "pr", "pro"}
  for x, _ in curves.values():
    assert 100 < len(x) <= 300
    assert (np.diff(x) >= 0).all() and x[-1] == 1
  for name, (x, y) in full.items():
    points = np.stack([x, y], axis=-1)
    assert largest_distance(points, *curves[name]) < 0.01
  rate, overlap = curves["pro"]
  inside = rate <= 0.3
  area = np.sum(
    np.diff(rate[inside]) * (overlap[inside][1:] + overlap[inside][:-1]) / 2
  )
  assert area / rate[inside][-1] == pytest.approx(
    gather(maps, masks).compute()["pixel_aupro"], abs=0.01
  )


@pytest.mark.parametrize("deviation", (0.2, 0.05, 0.005))
@pytest.mark.parametrize("shift", (2, 4))
def test_narrow_scores_and_small_defects(deviation, shift):
  """A defect of 30 pixels in four images of 256 x 256."""
  rng = np.random.default_rng(0)
  masks = np.zeros((4, 256, 256), bool)
  masks[0, 100:105, 50:56] = True
  maps = rng.normal(0.4, deviation, masks.shape) + shift * deviation * masks
  maps = np.clip(maps, 0, 1).astype(np.float32)
  expected = gather(maps, masks, "exact").compute()
  actual = gather(maps, masks).compute()
  few = actual.pop("pixel_aupro_200")  # Bins next to a threshold count whole.
  assert few == pytest.approx(expected.pop("pixel_aupro_200"), abs=1e-4)
  assert actual == pytest.approx(expected, abs=1e-5)


def test_the_best_threshold_among_the_highest_scores():
  maps = np.full((1, 400, 400), 0.25, np.float32)
  masks = np.zeros(maps.shape, bool)
  maps[0, 0, :4], masks[0, 0, :2] = (0.7500001, 0.75, 0.7499999, 0.5), True
  state = gather(maps, masks)
  assert state.best_threshold() == np.float32(0.75)
  assert state.compute()["pixel_ap"] == 1
