"""A report of an evaluation to look at: report.html and report.md."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from cops_jax import methods
from cops_jax.evaluation.results import DatasetResult, group_means
from cops_jax.files import write_file
from cops_jax.metrics import METRICS
from cops_jax.paths import AnyPath
from cops_jax.reporting import domains, metric_title, percent
from cops_jax.reporting.published import published
from cops_jax.scoring import ANOMALY
from cops_jax.tables import one_line, shorten_list

_CURVES = {
  "image_roc": ("image ROC", "false-positive rate", "true-positive rate"),
  "image_pr": ("image precision and recall", "recall", "precision"),
  "pixel_roc": ("pixel ROC", "false-positive rate", "true-positive rate"),
  "pixel_pr": ("pixel precision and recall", "recall", "precision"),
  "pixel_pro": ("PRO", "false-positive rate", "per-region overlap"),
}
_KINDS = {
  "best": "Best: furthest on the right side of the threshold",
  "worst": "Worst: furthest on the wrong side of it, or nearest to it",
  "random": "Chosen at random",
}
_NORMAL_COLOR, _ANOMALY_COLOR, _LINE_COLOR = "#4878a8", "#d1603d", "#24507a"


def write_report(
  workdir: AnyPath,
  results: Mapping[str, DatasetResult],
  provenance: Mapping[str, Any],
  skipped: Mapping[str, str],
  failed: Mapping[str, str],
) -> AnyPath:
  """Writes report.html, report.md and the pictures that the latter shows.

  The page needs no other file and no network.

  Args:
    workdir: receives them.
    results: by data set.
    provenance: see `results.Evaluated`.
    skipped, failed: other data sets, and why they have no results.

  Returns:
    The page's path.
  """
  templates = make_environment()
  method = provenance["config"].get("method", "cops")  # As before there were.
  values = {
    "title": f"{methods.find(method).TITLE}: zero-shot anomaly detection",
    "subtitle": f"Of {provenance['checkpoint']}.",
    "metrics": [metric_title(name) for name in METRICS],
    "rows": _result_rows(results, method),
    "not_evaluated": [*skipped.items(), *failed.items()],
    "datasets": [
      _dataset_values(name, result) for name, result in results.items()
    ],
    "facts": _facts(results, provenance),
    "config": json.dumps(provenance["config"], indent=2),
  }
  for data in values["datasets"]:
    for group in data["pictures"]:
      for picture in group["pictures"]:
        write_file(workdir / picture["file"], picture["strip"])
  for name in ("report.md", "report.html"):
    text = templates.get_template(f"{name}.jinja").render(values)
    write_file(workdir / name, text)
  return workdir / "report.html"


def make_environment() -> Any:
  """jinja2's, with the templates of this package."""
  import jinja2

  environment = jinja2.Environment(
    loader=jinja2.FunctionLoader(
      lambda name: (
        resources.files("cops_jax.reporting")
        .joinpath("templates", name)
        .read_text("utf-8")
      )
    ),
    autoescape=lambda name: name.startswith("report.html"),
    undefined=jinja2.StrictUndefined,
  )
  environment.filters["cell"] = _markdown_cell
  return environment


def _markdown_cell(text):
  """A name as it stands in a table of Markdown."""
  return one_line(text).replace("\\", "\\\\").replace("|", "\\|")


def _result_rows(results, method):
  papers = published(method)
  rows = [
    {
      "name": name,
      "is_group": False,
      "cells": _cells(
        result.mean, papers.get(name, {}) if result.is_published else {}
      ),
    }
    for name, result in results.items()
  ]
  # The paper's means would be over other data sets unless all are there.
  rows += [
    {"name": name, "is_group": True, "cells": _cells(mean, {})}
    for name, mean in group_means(results, domains()).items()
  ]
  return rows


def _cells(values, published):
  cells = []
  for metric in METRICS:
    cell = {"value": percent(values[metric]), "published": "", "reason": ""}
    if metric in published and not math.isnan(values[metric]):
      difference = 100 * values[metric] - published[metric]
      cell |= {
        "published": f"{published[metric]:.1f}",
        "difference": f"{difference:+.1f}".replace("-", "\N{MINUS SIGN}"),
        "is_up": difference >= 0,
      }
    cells.append(cell)
  return cells


def _dataset_values(name, result):
  labels = np.array([image.label for image in result.images])
  categories = []
  for category, row in result.categories.items():
    cells = _cells(row.metrics, {})
    for cell, metric in zip(cells, METRICS, strict=True):
      cell["reason"] = row.undefined.get(metric, "")
    thresholds = (row.image_threshold, row.pixel_threshold)
    cells += [{"value": _number(value), "reason": ""} for value in thresholds]
    categories.append({"name": category, "is_group": False, "cells": cells})
  blank = {"value": "", "reason": ""}
  categories.append(
    {
      "name": "mean",
      "is_group": True,
      "cells": [*_cells(result.mean, {}), blank, blank],
    }
  )
  return {
    "name": name,
    "anchor": f"data-{name}",
    "summary": (
      f"{len(labels):,} images, {int((labels == ANOMALY).sum()):,} of them"
      f" anomalous, in {len(result.categories)} categories;"
      f" {result.seconds:,.0f} s, {len(labels) / result.seconds:.1f} images/s,"
      f" peak memory {result.peak_memory_bytes / 1e9:.1f} GB"
    ),
    "categories": categories,
    "reasons": _reasons(result),
    "notes": shorten_list(result.notes),
    "figures": _figures(result),
    "pictures": _picture_groups(name, result),
    "skipped": list(result.skipped.items()),
  }


def _number(value):
  return "n/a" if math.isnan(value) else f"{value:.3f}"


def _reasons(result):
  """Why metrics are undefined: a sentence for each reason."""
  found = {}
  for category, row in result.categories.items():
    for metric, reason in row.undefined.items():
      place = found.setdefault(reason, {})
      place.setdefault(category, []).append(metric_title(metric))
  sentences = []
  for reason, places in found.items():
    metrics = dict.fromkeys(name for names in places.values() for name in names)
    where = (
      ""
      if len(places) == len(result.categories)
      else f" in {', '.join(places)}"
    )
    sentences.append(f"n/a{where}: {', '.join(metrics)} ({reason})")
  return sentences


def _picture_groups(name, result):
  groups = []
  for kind, title in _KINDS.items():
    pictures = []
    for picture in result.pictures:
      if picture.kind != kind:
        continue
      image = picture.image
      threshold = result.categories[image.category].image_threshold
      flagged = image.image_score >= threshold
      is_anomaly = image.label == ANOMALY
      truth = "anomaly" if is_anomaly else "normal"
      has_verdict = not math.isnan(threshold)
      verdict = "anomaly" if flagged else "normal"
      source = base64.b64encode(picture.strip).decode()
      pictures.append(
        {
          "path": image.path,
          "file": f"pictures/{name}/{kind}-{len(pictures) + 1}.jpg",
          "strip": picture.strip,
          "source": f"data:image/jpeg;base64,{source}",
          "is_right": has_verdict and flagged == is_anomaly,
          "verdict": f"called {verdict}" if has_verdict else "no verdict",
          "text": (
            f"is {truth}; {image.category}, score {image.image_score:.3f},"
            f" threshold {_number(threshold)}"
          ),
        }
      )
    if pictures:
      groups.append({"title": title, "pictures": pictures})
  return groups


def _facts(results, provenance):
  versions = ", ".join(
    f"{name} {version}" for name, version in provenance["versions"].items()
  )
  facts = [
    ("method", provenance["config"].get("method", "cops")),
    ("prompts", provenance["checkpoint"]),
    ("prompts' SHA-256", provenance["prompts_sha256"]),
    ("CLIP", provenance["config"]["clip"]["weights"]),
    ("CLIP's SHA-256", provenance["clip_sha256"]),
    ("device", provenance["device"]),
    ("versions", f"cops_jax {provenance['version']}, {versions}"),
  ]
  facts += [
    (f"data of {name}", f"{result.identity}, SHA-256 {result.data_sha256}")
    for name, result in results.items()
  ]
  return facts


def _figures(result: DatasetResult) -> Sequence[Mapping[str, str]]:
  """Histogram of scores and curves, as images for the page."""
  figures = [_histogram(result)]
  for name, labels in _CURVES.items():
    curves = [
      row.curves[name]
      for row in result.categories.values()
      if name in row.curves
    ]
    if curves:
      figures.append(_curve_figure(curves, *labels))
  return figures


def _histogram(result):
  scores = {
    is_anomaly: [
      image.image_score
      for image in result.images
      if (image.label == ANOMALY) == is_anomaly
    ]
    for is_anomaly in (False, True)
  }
  everything = scores[False] + scores[True]
  bins = np.linspace(min(everything), max(everything) + 1e-9, 31)
  title = "image scores"
  figure, axis = _axis(title, "image score", "images")
  for is_anomaly, name, color in (
    (False, "normal", _NORMAL_COLOR),
    (True, "anomaly", _ANOMALY_COLOR),
  ):
    axis.hist(
      scores[is_anomaly], bins=bins, label=name, color=color, alpha=0.65
    )
  axis.legend(frameon=False, fontsize=8)
  return _picture(figure, title)


def _curve_figure(curves, title, x_label, y_label):
  """A thin line for each category, a thick one for their mean."""
  figure, axis = _axis(title, x_label, y_label)
  grid = np.linspace(0, 1, 201)
  heights = []
  for x, y in curves:
    x, y = np.asarray(x), np.asarray(y)
    order = np.argsort(x, kind="stable")
    heights.append(np.interp(grid, x[order], y[order]))
    if len(curves) > 1:
      axis.plot(x, y, color=_LINE_COLOR, alpha=0.25, linewidth=0.8)
  axis.plot(grid, np.mean(heights, axis=0), color=_ANOMALY_COLOR, linewidth=2)
  if title == "PRO":
    axis.axvline(0.3, color="grey", linewidth=0.8, linestyle="--")
  axis.set(xlim=(0, 1), ylim=(0, 1.02))
  return _picture(figure, title)


def _axis(title, x_label, y_label):
  from matplotlib.backends.backend_svg import FigureCanvasSVG
  from matplotlib.figure import Figure

  figure = Figure(figsize=(3.4, 2.7), layout="constrained")
  FigureCanvasSVG(figure)
  axis = figure.add_subplot()
  axis.set_title(title, fontsize=10)
  axis.set_xlabel(x_label, fontsize=9)
  axis.set_ylabel(y_label, fontsize=9)
  axis.tick_params(labelsize=8)
  axis.spines[["top", "right"]].set_visible(False)
  axis.grid(alpha=0.25)
  return figure, axis


def _picture(figure, title):
  import matplotlib

  file = io.BytesIO()
  with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
    figure.savefig(file, format="svg", metadata={"Date": None})
  source = base64.b64encode(file.getvalue()).decode()
  return {"title": title, "source": f"data:image/svg+xml;base64,{source}"}
