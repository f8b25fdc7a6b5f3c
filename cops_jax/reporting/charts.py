"""A data set's histogram and curves, as shapes that the page draws as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from cops_jax.evaluation.results import CategoryResult, DatasetResult
from cops_jax.metrics.counts import AUPRO_LIMIT
from cops_jax.reporting.tables import percent
from cops_jax.scoring import ANOMALY

# In the drawing's units; its other two numbers are where the axes end.
WIDTH, HEIGHT = 340, 260
LEFT, RIGHT, TOP, BOTTOM = 46, 330, 34, 216

_RATE, _RECALL = "false-positive rate", "recall"
# By curve: title, axes, and the metric that sums it up.
_CURVES = {
  "image_roc": ("Image ROC", _RATE, "true-positive rate", "AUROC"),
  "image_pr": ("Image precision and recall", _RECALL, "precision", "AP"),
  "pixel_roc": ("Pixel ROC", _RATE, "true-positive rate", "AUROC"),
  "pixel_pr": ("Pixel precision and recall", _RECALL, "precision", "AP"),
  "pixel_pro": ("Per-region overlap", _RATE, "overlap", "AUPRO"),
}
_NUM_BINS = 30
_NO_SHAPES = {
  **dict.fromkeys(("bars", "thresholds", "categories", "dots"), ()),
  **dict.fromkeys(("chance", "mean", "limit")),
}


def draw_charts(result: DatasetResult) -> list[dict[str, Any]]:
  """The histogram of image scores, and each curve that is defined.

  Returns:
    Of each its title, its metric as text, its axes' labels and ticks, and its
    shapes: places and paths in the drawing's units.
  """
  charts = [_histogram(result)]
  for name, labels in _CURVES.items():
    rows = {
      category: row
      for category, row in result.categories.items()
      if name in row.curves
    }
    if rows:
      charts.append(_curves(name, rows, result.mean, *labels))
  return charts


def _curves(name, rows, mean, title, x_label, y_label, metric):
  level = name.split("_")[0]
  grid = np.linspace(0, 1, 201)
  heights, chances, lines, dots = [], [], [], []
  for category, row in rows.items():
    x, y = (np.asarray(axis) for axis in row.curves[name])
    order = np.argsort(x, kind="stable")
    heights.append(np.interp(grid, x[order], y[order]))
    lines.append((category, _path(_across(x), _up(y))))
    false_rate, recall, precision, share = _at_threshold(row, level)
    if x_label == _RECALL:
      place, height = recall, precision
      chances.append((share, share))
    else:
      place, height = false_rate, y[x <= false_rate + 1e-4].max()
      chances.append((0, 1))
    dots.append((category, _across(place), _up(height)))
  ticks = np.linspace(0, 1, 6)
  value = mean[f"{level}_{metric.lower()}"]
  return {
    **_NO_SHAPES,
    "title": title,
    "value": f"{metric} {percent(value)}",
    "x_label": x_label,
    "y_label": y_label,
    "x_ticks": [(_across(tick), f"{tick:g}") for tick in ticks],
    "y_ticks": [(_up(tick), f"{tick:g}") for tick in ticks],
    "chance": _path(_across(np.arange(2)), _up(np.mean(chances, axis=0))),
    "categories": lines if len(lines) > 1 else [],
    "mean": _path(_across(grid), _up(np.mean(heights, axis=0))),
    "dots": dots,
    "limit": _across(AUPRO_LIMIT) if metric == "AUPRO" else None,
  }


def _at_threshold(row: CategoryResult, level: str):
  """False-positive rate, recall and precision at the threshold of largest F1.

  And the share of anomalous items, which is the precision of calling all so.
  """
  recall, precision = (np.asarray(axis) for axis in row.curves[f"{level}_pr"])
  share = precision[-1]
  best = (recall * precision / np.maximum(recall + precision, 1e-12)).argmax()
  false_alarms = recall[best] * share * (1 / max(precision[best], 1e-12) - 1)
  rate = min(false_alarms / max(1 - share, 1e-12), 1)
  return rate, recall[best], precision[best], share


def _histogram(result):
  kinds: Mapping[str, list[float]] = {"normal": [], "anomalous": []}
  for image in result.images:
    kind = "anomalous" if image.label == ANOMALY else "normal"
    kinds[kind].append(image.image_score)
  thresholds = {
    category: row.image_threshold
    for category, row in result.categories.items()
    if not math.isnan(row.image_threshold)
  }
  scores = [*kinds["normal"], *kinds["anomalous"], *thresholds.values()]
  x_ticks = _ticks(min(scores), max(scores))
  edges = np.linspace(x_ticks[0], x_ticks[-1], _NUM_BINS + 1)
  counts = {kind: np.histogram(kinds[kind], edges)[0] for kind in kinds}
  y_ticks = _ticks(0, max(found.max() for found in counts.values()), least=1)

  def up(value):
    return _up(value / y_ticks[-1])

  def across(value):
    return _across((value - edges[0]) / (edges[-1] - edges[0]))

  places = across(np.repeat(edges, 2))
  return {
    **_NO_SHAPES,
    "title": "Image scores",
    "value": f"AUROC {percent(result.mean['image_auroc'])}",
    "x_label": "score",
    "y_label": "images",
    "x_ticks": [(across(tick), f"{tick:g}") for tick in x_ticks],
    "y_ticks": [(up(tick), f"{tick:g}") for tick in y_ticks],
    "bars": [
      (kind, _path(places, up(np.pad(np.repeat(found, 2), 1))))
      for kind, found in counts.items()
    ],
    "thresholds": [
      (f"{category}: {value:.3f}", across(value))
      for category, value in thresholds.items()
    ],
  }


def _across(value):
  return np.round(LEFT + (RIGHT - LEFT) * value, 1)


def _up(value):
  return np.round(BOTTOM + (TOP - BOTTOM) * value, 1)


def _path(x, y):
  """An SVG path; neighbours that round to the same place are one point."""
  points = list(dict.fromkeys(zip(x.tolist(), y.tolist(), strict=True)))
  return "M" + " ".join(f"{across:g},{up:g}" for across, up in points)


def _ticks(low, high, least=1e-6, most=6):
  """Round numbers at equal distances, from at most `low` to at least `high`."""
  size = 10.0 ** math.floor(math.log10(max((high - low) / most, least)))
  for step in (size, 2 * size, 5 * size, 10 * size, 20 * size):
    first, last = math.floor(low / step), math.ceil(high / step)
    if last - first <= most:
      break
  last = max(last, first + 1)
  return [round(place * step, 12) for place in range(first, last + 1)]
