"""Histogram and curves of a data set, drawn by matplotlib as SVG."""

from __future__ import annotations

import io
import math
import re

import numpy as np

from cops_jax.evaluation.results import CategoryResult, DatasetResult
from cops_jax.metrics.counts import AUPRO_LIMIT
from cops_jax.reporting.tables import percent
from cops_jax.scoring import ANOMALY

_RATE, _RECALL = "false-positive rate", "recall"
# Title, axes and metric of each curve.
_CURVES = {
  "image_roc": ("Image ROC", _RATE, "true-positive rate", "AUROC"),
  "image_pr": ("Image precision and recall", _RECALL, "precision", "AP"),
  "pixel_roc": ("Pixel ROC", _RATE, "true-positive rate", "AUROC"),
  "pixel_pr": ("Pixel precision and recall", _RECALL, "precision", "AP"),
  "pixel_pro": ("Per-region overlap", _RATE, "overlap", "AUPRO"),
}
_NUM_BINS = 30
_POINTS = 340, 250  # Width and height.
_NAMED = "named "  # Prefix of the ids of elements that get a tooltip.
# matplotlib draws in these colors. CSS variables then replace them, because the
# page can be light or dark.
_COLORS = {
  name: f"#fe01{number:02x}"
  for number, name in enumerate(
    ("card", "ink", "soft", "line", "mean", "category", "normal", "anomalous")
  )
}
_STYLE = {
  "svg.fonttype": "none",
  "svg.hashsalt": "cops_jax",  # Makes the page reproducible.
  "font.size": 11.5,
  "axes.titlesize": 13,
  "axes.titleweight": "bold",
  "axes.titlecolor": _COLORS["ink"],
  "axes.labelcolor": _COLORS["soft"],
  "axes.formatter.useoffset": False,
  "axes.grid": True,
  "axes.axisbelow": True,
  "grid.color": _COLORS["line"],
  **{f"{axis}tick.color": _COLORS["soft"] for axis in "xy"},
  **{f"{axis}tick.major.size": 0 for axis in "xy"},
  **{f"{axis}tick.major.pad": 7 for axis in "xy"},
}


def draw_charts(result: DatasetResult) -> list[str]:
  """Returns SVG elements: the histogram of image scores and all defined curves.

  Colors are CSS variables of the page. The tooltip of a curve or a threshold is
  the name of its category.
  """
  labels = ("Image scores", "score", "images", "AUROC")
  charts = [
    _draw(labels, result.mean["image_auroc"], _plot_histogram, (result,))
  ]
  for name, labels in _CURVES.items():
    rows = {
      category: row
      for category, row in result.categories.items()
      if name in row.curves
    }
    if rows:
      value = result.mean[f"{name.split('_')[0]}_{labels[-1].lower()}"]
      charts.append(_draw(labels, value, _plot_curves, (name, rows)))
  return charts


def _draw(labels, value, plot, arguments):
  """Returns an SVG element that can share a page with other SVG elements."""
  import matplotlib
  from matplotlib.figure import Figure

  title, x_label, y_label, metric = labels
  value = f"{metric} {percent(value)}"
  with matplotlib.rc_context(_STYLE):
    figure = Figure([number / 72 for number in _POINTS])
    axes = figure.add_axes((0.14, 0.19, 0.83, 0.7), frame_on=False)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.set_title(title, loc="left")
    axes.set_title(value, loc="right")
    plot(axes, *arguments)
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
  svg = file.getvalue()
  for name, color in _COLORS.items():
    svg = svg.replace(color, f"var(--{name})")
  start = (
    f'<svg class="chart" viewBox="0 0 {_POINTS[0]} {_POINTS[1]}" role="img"'
    f' aria-label="{title}: {value}">'
  )
  svg = re.sub("^.*?<svg.*?>", start, svg, flags=re.S)
  svg = re.sub("<style.*?</style>", "", svg, flags=re.S)
  svg = re.sub(f'<g id="{_NAMED}([^"]*)">', r"<g><title>\1</title>", svg)
  return re.sub('<g id="[^"]*">', "<g>", svg)


def _line(color, style="-", width=1.0):
  return dict(color=_COLORS[color], linestyle=style, linewidth=width)


def _plot_histogram(axes, result):
  scores = {"normal": [], "anomalous": []}
  for image in result.images:
    kind = "anomalous" if image.label == ANOMALY else "normal"
    scores[kind].append(image.image_score)
  edges = np.histogram_bin_edges(sum(scores.values(), []), _NUM_BINS)
  for kind, values in scores.items():
    color = _COLORS[kind]
    colors = dict(fill=True, facecolor=(color, 0.45), edgecolor=color)
    axes.stairs(*np.histogram(values, edges), linewidth=1.5, **colors)
  for category, row in result.categories.items():
    place = row.image_threshold
    if not math.isnan(place):
      gid = f"{_NAMED}{category}: {place:.3f}"
      axes.axvline(place, gid=gid, **_line("ink", "--"))
  axes.set_ylim(bottom=0)
  axes.yaxis.get_major_locator().set_params(integer=True)


def _plot_curves(axes, name, rows):
  level, kind = name.split("_")
  grid = np.linspace(0, 1, 201)
  heights, chances = [], []
  for category, row in rows.items():
    x, y = (np.asarray(axis) for axis in row.curves[name])
    order = np.argsort(x, kind="stable")
    heights.append(np.interp(grid, x[order], y[order]))
    named = dict(gid=f"{_NAMED}{category}", clip_on=False)
    if len(rows) > 1:
      axes.plot(x, y, **_line("category"), **named)
    false_rate, recall, precision, share = _at_threshold(row, level)
    place, chance = (recall, precision), (share, share)
    if kind != "pr":
      place, chance = (false_rate, y[x <= false_rate + 1e-4].max()), (0, 1)
    chances.append(chance)
    colors = dict(color=_COLORS["card"], markeredgecolor=_COLORS["ink"])
    size = dict(markersize=6, markeredgewidth=1.5, zorder=3)
    axes.plot(*place, "o", **colors, **size, **named)
  axes.plot(grid, np.mean(heights, 0), clip_on=False, **_line("mean", "-", 2.5))
  axes.plot((0, 1), np.mean(chances, 0), **_line("soft", "--"))
  if kind == "pro":
    axes.axvline(AUPRO_LIMIT, **_line("ink", ":"))
  axes.set(xlim=(0, 1), ylim=(0, 1))


def _at_threshold(row: CategoryResult, level: str):
  """Returns rates at the threshold of the largest F1.

  They are the false-positive rate, recall, precision and the share of anomalous
  items, which is the precision of random scores.
  """
  recall, precision = (np.asarray(axis) for axis in row.curves[f"{level}_pr"])
  share = precision[-1]
  best = (recall * precision / np.maximum(recall + precision, 1e-12)).argmax()
  false_alarms = recall[best] * share * (1 / max(precision[best], 1e-12) - 1)
  rate = min(false_alarms / max(1 - share, 1e-12), 1)
  return rate, recall[best], precision[best], share
