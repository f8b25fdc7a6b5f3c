"""Curves and histograms, as shapes."""

import re

import numpy as np
import pytest

from cops_jax import metrics
from cops_jax.evaluation import results
from cops_jax.metrics import METRICS
from cops_jax.reporting import charts

LABELS = np.arange(60) % 3 == 0


def make_result(*shifts):
  """Scored images of a category for each shift of the anomalous ones."""
  images, categories = [], {}
  for number, shift in enumerate(shifts):
    name = f"part {number}"
    scores = np.random.default_rng(number).random(60) + shift * LABELS
    for label, score in zip(LABELS, scores, strict=True):
      images.append(
        results.ImageResult("made", name, "a.png", int(label), float(score))
      )
    counts = metrics.count_images(scores, LABELS)
    categories[name] = results.CategoryResult(
      dict.fromkeys(METRICS, 0.5),
      image_threshold=counts.best_threshold(),
      curves={
        f"image_{name}": tuple(axis.tolist() for axis in curve)
        for name, curve in counts.curves().items()
      },
    )
  return results.DatasetResult(categories, images)


def rates(result, category):
  """False-positive rate, recall and precision at the image threshold."""
  threshold = result.categories[category].image_threshold
  rows = [image for image in result.images if image.category == category]
  flagged = np.array([image.image_score >= threshold for image in rows])
  labels = np.array([image.label == 1 for image in rows])
  return (
    flagged[~labels].mean(),
    flagged[labels].mean(),
    labels[flagged].mean(),
  )


def place(x, y):
  """In the drawing, of a point from 0 to 1."""
  return (
    charts.LEFT + (charts.RIGHT - charts.LEFT) * x,
    charts.BOTTOM + (charts.TOP - charts.BOTTOM) * y,
  )


def points(path):
  numbers = re.findall(r"[\d.]+", path)
  return np.array(numbers, float).reshape(-1, 2)


def test_curves_show_where_the_thresholds_are():
  result = make_result(0.3, 0.8)
  _, roc, pr = charts.draw_charts(result)
  for name, roc_dot, pr_dot in (
    ("part 0", roc["dots"][0], pr["dots"][0]),
    ("part 1", roc["dots"][1], pr["dots"][1]),
  ):
    false_rate, recall, precision = rates(result, name)
    assert roc_dot[0] == pr_dot[0] == name
    assert roc_dot[1:] == pytest.approx(place(false_rate, recall), abs=0.2)
    assert pr_dot[1:] == pytest.approx(place(recall, precision), abs=0.2)
  assert [name for name, _ in roc["categories"]] == ["part 0", "part 1"]
  assert roc["value"] == "AUROC 50.0" and pr["value"] == "AP 50.0"


def test_chance_is_the_diagonal_or_the_share_of_anomalous_images():
  _, roc, pr = charts.draw_charts(make_result(0.3))
  np.testing.assert_allclose(
    points(roc["chance"]), [place(0, 0), place(1, 1)], atol=0.1
  )
  np.testing.assert_allclose(
    points(pr["chance"]), [place(0, 1 / 3), place(1, 1 / 3)], atol=0.1
  )
  assert not roc["categories"]  # The mean is the category's own.
  np.testing.assert_allclose(points(roc["mean"])[-1], place(1, 1), atol=0.1)


@pytest.mark.parametrize("scale", (1, 0.001))
def test_the_histogram_counts_every_image(scale):
  result = make_result(0.5)
  images = [
    results.ImageResult("made", "part 0", "a.png", image.label, score)
    for image in result.images
    for score in [0.5 + scale * image.image_score]
  ]
  category = results.CategoryResult(
    dict.fromkeys(METRICS, 0.5), image_threshold=0.5 + scale
  )
  result = results.DatasetResult({"part 0": category}, images)
  (histogram,) = charts.draw_charts(result)
  assert 2 <= len(histogram["x_ticks"]) <= 8
  highest = float(histogram["y_ticks"][-1][1])
  width = (charts.RIGHT - charts.LEFT) / 30
  for (kind, path), number in zip(histogram["bars"], (40, 20), strict=True):
    x, y = points(path).T
    area = np.sum(np.diff(x) * (charts.BOTTOM - (y[1:] + y[:-1]) / 2))
    counted = area / width / (charts.BOTTOM - charts.TOP) * highest
    assert counted == pytest.approx(number, rel=0.03), kind
  ((label, x),) = histogram["thresholds"]
  assert label == f"part 0: {0.5 + scale:.3f}"
  ticks = [(x, float(text)) for x, text in histogram["x_ticks"]]
  (left, low), (right, high) = ticks[0], ticks[-1]
  value = low + (high - low) * (x - left) / (right - left)
  assert value == pytest.approx(0.5 + scale, abs=0.01 * (high - low))


@pytest.mark.parametrize(
  "low, high, expected",
  (
    (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
    (0.512, 0.534, [0.51, 0.515, 0.52, 0.525, 0.53, 0.535]),
    (0.5, 0.5, None),
    (0, 7, [0, 2, 4, 6, 8]),
  ),
)
def test_ticks_are_round(low, high, expected):
  ticks = charts._ticks(low, high)
  assert expected is None or ticks == expected
  assert ticks[0] <= low and ticks[-1] >= high and len(ticks) >= 2
  assert charts._ticks(0, 3, least=1) == [0, 1, 2, 3]
