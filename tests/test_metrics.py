"""Metrics against scikit-learn and hand-worked values."""

import math

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from cops_jax import metrics


def test_by_hand():
  """Ranks: anomalous 0.9 and 0.4, normal 0.4 and 0.1."""
  scores = np.array([0.9, 0.4, 0.4, 0.1])
  labels = np.array([True, True, False, False])
  actual = metrics.image_metrics(scores, labels)
  # Pairs: 1 + 1 for the first, 1/2 + 1 for the tie.
  assert actual["image_auroc"] == pytest.approx(3.5 / 4)
  # Recall 1/2 at precision 1, then 1 at 2/3.
  assert actual["image_ap"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


@pytest.mark.parametrize("decimals", (1, 2, 8))
def test_image_metrics_are_sklearns(decimals):
  rng = np.random.default_rng(decimals)
  labels = rng.random(500) < 0.3
  scores = np.round(rng.normal(labels * 0.7), decimals)
  actual = metrics.image_metrics(scores, labels)
  assert actual["image_auroc"] == pytest.approx(
    sklearn_metrics.roc_auc_score(labels, scores), abs=1e-12
  )
  assert actual["image_ap"] == pytest.approx(
    sklearn_metrics.average_precision_score(labels, scores), abs=1e-12
  )


def random_maps(number=6, side=100):
  rng = np.random.default_rng(0)
  masks = rng.random((number, side, side)) < 0.02
  logits = rng.normal(-4 + 2.0 * masks, 2.0)
  return (1 / (1 + np.exp(-logits))).astype(np.float32), masks


def test_pixel_metrics_are_sklearns():
  maps, masks = random_maps()
  histogram = metrics.PixelMetrics()
  for anomaly_map, mask in zip(maps, masks, strict=True):
    histogram.add(anomaly_map, mask)
  actual = histogram.compute()
  labels, scores = masks.reshape(-1), maps.reshape(-1)
  assert actual["pixel_auroc"] == pytest.approx(
    sklearn_metrics.roc_auc_score(labels, scores), abs=1e-4
  )
  assert actual["pixel_ap"] == pytest.approx(
    sklearn_metrics.average_precision_score(labels, scores), abs=1e-4
  )


def test_histograms_merge_exactly():
  maps, masks = random_maps()
  together, first, second = (metrics.PixelMetrics() for _ in range(3))
  for index, (anomaly_map, mask) in enumerate(zip(maps, masks, strict=True)):
    together.add(anomaly_map, mask)
    (first if index % 2 else second).add(anomaly_map, mask)
  merged = first.merge(second)
  np.testing.assert_array_equal(merged.counts, together.counts)
  assert merged.counts.sum() == masks.size
  assert merged.compute() == together.compute()


def test_bins_keep_the_order():
  scores = np.sort(
    np.concatenate(
      [
        [0.0, 1e-30, 0.5, 1.0],
        np.geomspace(1e-12, 0.5, 1000),
        1 - np.geomspace(1e-7, 0.5, 1000),
      ]
    ).astype(np.float32)
  )
  bins = metrics.score_bins(scores)
  assert (np.diff(bins) >= 0).all()
  assert bins.min() >= 0 and bins.max() < metrics.NUM_BINS
  assert len(np.unique(bins)) > 1500


@pytest.mark.parametrize("label", (True, False))
def test_one_class_is_undefined(label):
  image = metrics.image_metrics(np.array([0.1, 0.2]), np.array([label] * 2))
  histogram = metrics.PixelMetrics()
  histogram.add(np.full((2, 2), 0.5, np.float32), np.full((2, 2), label))
  for value in (*image.values(), *histogram.compute().values()):
    assert math.isnan(value)


def test_nothing_is_undefined():
  image = metrics.image_metrics(np.array([]), np.array([], bool))
  assert math.isnan(image["image_auroc"])


def test_constant_scores():
  labels = np.array([True, False, False, False])
  actual = metrics.image_metrics(np.full(4, 0.3), labels)
  assert actual == pytest.approx(
    {"image_auroc": 0.5, "image_ap": 0.25, "image_f1_max": 0.4}
  )


def test_nan_is_refused():
  with pytest.raises(ValueError, match="NaN"):
    metrics.PixelMetrics().add(
      np.array([[np.nan]], np.float32), np.array([[True]])
    )
