"""Metrics that have no value, and why."""

import math

import numpy as np
import pytest

from cops_jax import metrics

MODES = metrics.PIXEL_METRICS_MODES


@pytest.mark.parametrize("mode", MODES)
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
  scores = np.array([0.1, 0.2])
  state = metrics.make_pixel_metrics(mode)
  if label is not None:
    state.add(np.full((2, 2), 0.5, np.float32), np.full((2, 2), label))
  values = metrics.image_metrics(scores, labels) | state.compute()
  assert tuple(values) == metrics.METRICS
  assert all(math.isnan(value) for value in values.values())
  assert metrics.undefined_reasons(values, labels, state) == {
    name: reasons[name.startswith("pixel")] for name in metrics.METRICS
  }
  assert math.isnan(state.best_threshold())
  assert math.isnan(metrics.best_image_threshold(scores, labels))
  curves = [
    *state.curves().values(),
    *metrics.image_curves(scores, labels).values(),
  ]
  assert all(len(x) == len(y) == 0 for x, y in curves)


def test_defined_metrics_have_no_reason():
  scores, labels = np.array([0.1, 0.2]), np.array([False, True])
  values = metrics.image_metrics(scores, labels)
  assert metrics.undefined_reasons(values, labels, metrics.PixelMetrics()) == {}


def test_nothing_is_undefined():
  image = metrics.image_metrics(np.array([]), np.array([], bool))
  assert all(math.isnan(value) for value in image.values())


def test_nan_scores_are_refused():
  scores, labels = np.array([0.5, np.nan]), np.array([True, False])
  for function in (
    metrics.image_metrics,
    metrics.image_curves,
    metrics.best_image_threshold,
  ):
    with pytest.raises(ValueError, match="NaN"):
      function(scores, labels)
