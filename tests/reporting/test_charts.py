"""Curves and histograms in SVG."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from cops_jax import metrics
from cops_jax.evaluation import results
from cops_jax.metrics import METRICS
from cops_jax.reporting.charts import draw_charts
from helpers.made_results import NAN

LABELS = np.arange(60) % 3 == 0
LEFT, RIGHT, TOP, BOTTOM = 47.6, 329.8, 27.5, 202.5


def make_result(*shifts):
  """Returns a result with a category for each shift of anomalous scores."""
  images, categories = [], {}
  for number, shift in enumerate(shifts):
    name = f"part <{number}>"
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


def parse(chart):
  return ElementTree.fromstring(chart.replace("xlink:", ""))


def points(chart, style):
  """Returns the points, in [0, 1], of each path with a style."""
  found = []
  for path in parse(chart).iter("path"):
    if style in path.get("style", ""):
      numbers = re.findall(r"[\d.]+", path.get("d"))
      x, y = np.array(numbers, float).reshape(-1, 2).T
      places = (x - LEFT) / (RIGHT - LEFT), (y - BOTTOM) / (TOP - BOTTOM)
      found.append(np.stack(places, axis=-1))
  return found


def dots(chart):
  """Returns the marked points by their tooltips."""
  found = {}
  for group in parse(chart).iter("g"):
    for use in group.findall("g/use"):
      x, y = float(use.get("x")), float(use.get("y"))
      place = (x - LEFT) / (RIGHT - LEFT), (y - BOTTOM) / (TOP - BOTTOM)
      found[group.findtext("title")] = place
  return found


def test_curves_mark_the_thresholds():
  result = make_result(0.3, 0.8)
  _, roc, pr = draw_charts(result)
  for name, category in result.categories.items():
    rows = [image for image in result.images if image.category == name]
    scores = np.array([image.image_score for image in rows])
    flagged = scores >= category.image_threshold
    recall, false_rate = flagged[LABELS].mean(), flagged[~LABELS].mean()
    precision = LABELS[flagged].mean()
    assert dots(roc)[name] == pytest.approx((false_rate, recall), abs=0.01)
    assert dots(pr)[name] == pytest.approx((recall, precision), abs=0.01)
  assert "AUROC 50.0" in roc and "AP 50.0" in pr
  assert len(points(roc, "var(--category)")) == 2


@pytest.mark.parametrize("scale", (1, 0.001))
def test_the_histogram_counts_every_image(scale):
  images = [
    results.ImageResult(
      "made", "part", "a.png", int(label), 0.5 + scale * score
    )
    for label, score in zip(
      LABELS, np.random.default_rng(0).random(60), strict=True
    )
  ]
  category = results.CategoryResult(
    dict.fromkeys(METRICS, NAN), image_threshold=0.5 + 0.9 * scale
  )
  (chart,) = draw_charts(results.DatasetResult({"part": category}, images))
  areas = []
  for kind in ("normal", "anomalous"):
    (outline,) = points(chart, f"var(--{kind})")
    x, y = outline.T
    areas.append(abs(np.sum(x * np.roll(y, 1) - y * np.roll(x, 1))))
  assert areas[0] / areas[1] == pytest.approx(40 / 20, rel=0.01)
  titles = [title.text for title in parse(chart).iter("title")]
  assert titles == [f"part: {0.5 + 0.9 * scale:.3f}"]
  (threshold,) = points(chart, "stroke-dasharray")
  low, high = x.min(), x.max()
  scores = [image.image_score for image in images]
  place = (0.5 + 0.9 * scale - min(scores)) / (max(scores) - min(scores))
  assert (threshold[0, 0] - low) / (high - low) == pytest.approx(
    place, abs=0.01
  )
  assert "AUROC n/a" in chart
