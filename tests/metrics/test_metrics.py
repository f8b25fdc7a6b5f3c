"""Metrics against scikit-learn, brute force and hand-computed values."""

import math

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from cops_jax import metrics
from helpers.anomaly_maps import gather, random_maps, squares

in_both_modes = pytest.mark.parametrize("mode", metrics.PIXEL_METRICS_MODES)


def neighbours(row, column):
  return [(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]


def regions_of(mask):
  """Returns sets of pixels that touch by an edge or a corner, by flood fill."""
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


def scores_of_regions(maps, masks):
  return [
    np.array([anomaly_map[pixel] for pixel in region])
    for anomaly_map, mask in zip(maps, masks, strict=True)
    for region in regions_of(mask)
  ]


def brute_force_aupro(maps, masks, limit=0.3):
  """Computes AUPRO threshold by threshold and region by region."""
  regions, normal = scores_of_regions(maps, masks), maps[~masks]
  area, last_rate, last_overlap = 0.0, 0.0, 0.0
  for threshold in sorted(set(maps.reshape(-1).tolist()), reverse=True):
    rate = np.mean(normal >= threshold)
    overlap = np.mean([np.mean(region >= threshold) for region in regions])
    if rate > limit:
      part = (limit - last_rate) / (rate - last_rate)
      overlap = last_overlap + part * (overlap - last_overlap)
      return (area + (limit - last_rate) * (last_overlap + overlap) / 2) / limit
    area += (rate - last_rate) * (last_overlap + overlap) / 2
    last_rate, last_overlap = rate, overlap
  return area / limit


def reference(scores, labels, level):
  """Returns scikit-learn's values, with F1 from its precision and recall."""
  scores, labels = scores.reshape(-1), labels.reshape(-1)
  precision, recall, _ = sklearn_metrics.precision_recall_curve(labels, scores)
  f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
  return {
    f"{level}_auroc": sklearn_metrics.roc_auc_score(labels, scores),
    f"{level}_ap": sklearn_metrics.average_precision_score(labels, scores),
    f"{level}_f1_max": f1.max(),
  }


def test_image_metrics_match_hand_computed_values():
  """Anomalous images score 0.9 and 0.4, normal ones 0.4 and 0.1."""
  labels = np.array([True, True, False, False])
  counts = metrics.count_images(np.array([0.9, 0.4, 0.4, 0.1]), labels)
  assert counts.compute() == pytest.approx(
    {
      # Ordered pairs: 1 + 1 for 0.9, and 1/2 (a tie) + 1 for 0.4.
      "image_auroc": 3.5 / 4,
      # Recall is 1/2 at precision 1, then 1 at precision 2/3.
      "image_ap": 0.5 * 1 + 0.5 * 2 / 3,
      # The threshold 0.4 finds two anomalous images and one normal image.
      "image_f1_max": 2 * 2 / (2 * 2 + 1),
    }
  )
  assert counts.best_threshold() == 0.4
  assert counts.balanced_threshold() == 0.9  # The highest of two that tie.
  roc, pr = counts.curves().values()
  np.testing.assert_allclose(roc, ([0, 0, 0.5, 1], [0, 0.5, 1, 1]), atol=1e-12)
  np.testing.assert_allclose(pr, ([0.5, 1, 1], [1, 2 / 3, 0.5]), atol=1e-12)


@in_both_modes
def test_pixel_metrics_match_hand_computed_values(mode):
  """Regions score (0.9, 0.5) and (0.8,); normal pixels 0.7, 0.6 and 8 x 0.1."""
  anomaly_map = np.full((1, 13), 0.1, np.float32)
  anomaly_map[0, [0, 1, 3, 5, 6]] = 0.9, 0.5, 0.8, 0.7, 0.6
  mask = np.zeros((1, 13), bool)
  mask[0, [0, 1, 3]] = True
  counts = gather([anomaly_map], [mask], mode)
  assert counts.compute() == pytest.approx(
    {
      "pixel_auroc": (10 + 10 + 8) / 30,
      "pixel_ap": (1 + 1 + 3 / 5) / 3,
      "pixel_f1_max": 2 * 2 / (2 * 2 + 1),  # The threshold 0.8 misses one.
      # The overlap is (1/2 + 1) / 2 up to two false positives of ten, then 1.
      "pixel_aupro": (0.2 * 0.75 + 0.1 * 1) / 0.3,
      "pixel_aupro_200": 0.75,  # Rates from 0 to 0.2, scaled to [0, 1].
    },
    abs=1e-6,
  )
  assert counts.best_threshold() == np.float32(0.8)
  rate, overlap = counts.curves()["pro"]
  np.testing.assert_allclose(rate, [0, 0, 0, 0.1, 0.2, 0.2, 1], atol=1e-6)
  np.testing.assert_allclose(
    overlap, [0, 0.25, 0.75, 0.75, 0.75, 1, 1], atol=1e-6
  )
  # The curve is a line from (0, 0) to (1/2, 1), with overlap 0.6 at 0.3.
  anomaly_map = np.array([[0.5, 0.5, 0.25]], np.float32)
  counts = gather([anomaly_map], [np.array([[True, False, False]])], mode)
  assert counts.aupro() == pytest.approx(0.3 * 0.6 / 2 / 0.3)


@pytest.mark.parametrize("decimals", (1, 2, 8))
def test_image_metrics_match_sklearn(decimals):
  rng = np.random.default_rng(decimals)
  labels = rng.random(500) < 0.3
  scores = np.round(rng.normal(labels * 0.7), decimals)
  counts = metrics.count_images(scores, labels)
  actual = counts.compute()
  assert actual == pytest.approx(reference(scores, labels, "image"), abs=1e-12)
  found = scores >= counts.best_threshold()
  f1 = sklearn_metrics.f1_score(labels, found)
  assert f1 == pytest.approx(actual["image_f1_max"])


@pytest.mark.parametrize(
  "spread",
  (
    {},
    dict(center=-14, scale=4),  # Scores close to 0.
    dict(center=14, scale=4),  # Scores close to 1.
    dict(center=0, scale=8),  # Scores close to 0 and to 1.
    dict(center=0, scale=0.1),  # Nearly all scores in 0.5 +- 0.1.
    dict(shift=0),
  ),
  ids=str,
)
def test_pixel_metrics_match_sklearn(spread):
  maps, masks = random_maps(**spread)
  exact = gather(maps, masks, "exact").compute()
  for name, value in reference(maps, masks, "pixel").items():
    assert exact[name] == pytest.approx(value, abs=1e-12)
  counts = gather(maps, masks)
  assert counts.compute() == pytest.approx(exact, abs=1e-4)
  f1 = sklearn_metrics.f1_score(
    masks.reshape(-1), maps.reshape(-1) >= counts.best_threshold()
  )
  assert f1 == pytest.approx(counts.f1_max(), abs=1e-12)


@pytest.mark.parametrize("value", (0.0, 1e-20, 0.3, 1 - 2**-24, 1.0))
@in_both_modes
def test_constant_maps_have_defined_metrics(value, mode):
  masks = squares(3, 16)
  maps = np.full(masks.shape, value, np.float32)
  share = masks.mean()
  counts = gather(maps, masks, mode)
  assert counts.compute() == pytest.approx(
    {
      "pixel_auroc": 0.5,
      "pixel_ap": share,
      "pixel_f1_max": 2 * share / (1 + share),
      "pixel_aupro": 0.15,
      "pixel_aupro_200": 0.0,
    }
  )
  assert (maps >= counts.best_threshold()).all()


@in_both_modes
def test_aupro_matches_brute_force(mode):
  """Some regions touch only at corners, and one mask is empty."""
  rng = np.random.default_rng(1)
  masks = rng.random((5, 24, 24)) < 0.15
  masks[0] = False
  masks[1] = squares(2, 24)[1]
  maps = np.clip(rng.normal(0.3 + 0.2 * masks, 0.2), 0, 1)
  maps = np.round(maps, 1).astype(np.float32)
  actual = gather(maps, masks, mode).aupro()
  assert actual == pytest.approx(brute_force_aupro(maps, masks), abs=1e-9)
  flat = masks & ~np.roll(masks, 1, axis=-1)  # Other regions change AUPRO.
  other = gather(maps, flat, mode).aupro()
  assert other == pytest.approx(brute_force_aupro(maps, flat), abs=1e-9)
  assert abs(other - actual) > 1e-3


@in_both_modes
@pytest.mark.parametrize("scale", (0.1, 3))
def test_aupro_200_matches_brute_force(scale, mode):
  maps, masks = random_maps(number=4, side=40, scale=scale)
  regions = scores_of_regions(maps, masks)
  thresholds = maps.min() + np.arange(200) / 200 * np.ptp(maps)
  rates = np.array([np.mean(maps[~masks] > value) for value in thresholds])
  overlaps = np.array(
    [np.mean([np.mean(r > value) for r in regions]) for value in thresholds]
  )
  kept = rates < 0.3
  x = rates[kept] - rates[kept].min()
  expected = sklearn_metrics.auc(x / x.max(), overlaps[kept])
  actual = gather(maps, masks, mode).aupro_200()
  assert actual == pytest.approx(expected, abs=1e-5)


def test_thinned_curves_keep_their_areas():
  maps, masks = random_maps()
  counts = gather(maps, masks)
  curves = counts.curves()
  for x, _ in curves.values():
    assert 100 < len(x) <= 300
    assert (np.diff(x) >= 0).all() and x[-1] == 1
  auroc, ap = (sklearn_metrics.auc(*curves[name]) for name in ("roc", "pr"))
  assert auroc == pytest.approx(counts.auroc(), abs=0.005)
  assert ap == pytest.approx(counts.average_precision(), abs=0.01)


@pytest.mark.parametrize("deviation", (0.2, 0.005))
@pytest.mark.parametrize("shift", (2, 4))
def test_bins_are_exact_enough_for_narrow_scores(deviation, shift):
  """The defect has 30 pixels in four images of 256 x 256."""
  rng = np.random.default_rng(0)
  masks = np.zeros((4, 256, 256), bool)
  masks[0, 100:105, 50:56] = True
  maps = rng.normal(0.4, deviation, masks.shape) + shift * deviation * masks
  maps = np.clip(maps, 0, 1).astype(np.float32)
  expected = gather(maps, masks, "exact").compute()
  actual = gather(maps, masks).compute()
  # A threshold inside a bin counts the whole bin.
  few = actual.pop("pixel_aupro_200")
  assert few == pytest.approx(expected.pop("pixel_aupro_200"), abs=1e-4)
  assert actual == pytest.approx(expected, abs=1e-5)


@in_both_modes
@pytest.mark.parametrize(
  "label, reasons",
  (
    (True, ("no normal images", "no normal pixels")),
    (False, ("no anomalous images", "no anomalous pixels")),
    (None, ("no normal images", "no masks")),
  ),
)
def test_undefined_metrics_have_a_reason(label, reasons, mode):
  labels = np.array([label is not False] * 2)
  images = metrics.count_images(np.array([0.1, 0.2]), labels)
  maps = [] if label is None else [np.full((2, 2), 0.5, np.float32)]
  pixels = gather(maps, [np.full((2, 2), label)] * len(maps), mode)
  values = images.compute() | pixels.compute()
  assert list(values) == list(metrics.METRICS)
  assert all(math.isnan(value) for value in values.values())
  assert metrics.undefined_reasons(values, images, pixels) == {
    name: reasons[name.startswith("pixel")] for name in metrics.METRICS
  }
  for counts in (images, pixels):
    assert math.isnan(counts.best_threshold())
    assert math.isnan(counts.balanced_threshold())
    assert all(len(x) == len(y) == 0 for x, y in counts.curves().values())


def test_nan_image_scores_are_rejected():
  with pytest.raises(ValueError, match="NaN"):
    metrics.count_images(np.array([0.5, np.nan]), np.array([True, False]))
