"""A report of an evaluation to look at: report.html and report.md."""

from __future__ import annotations

import base64
import collections
import datetime
import json
import math
import pathlib
import shlex
import sys
from collections.abc import Mapping
from importlib import resources
from typing import Any

import numpy as np

from cops_jax import methods
from cops_jax.evaluation.results import DatasetResult, group_means
from cops_jax.files import write_file
from cops_jax.images.drawing import LINE_COLOR, TILE_PIXELS, heat_colors
from cops_jax.metrics import METRICS
from cops_jax.paths import AnyPath
from cops_jax.reporting import charts, domains, metric_title, percent
from cops_jax.reporting.papers import paper_results
from cops_jax.scoring import ANOMALY
from cops_jax.tables import group_by_reason, one_line, shorten_list
from cops_jax.weights import DEMO_CLIP

_KINDS = {
  "best": "Best: furthest on the right side of their category's threshold",
  "worst": "Worst: furthest on the wrong side, or nearest to the threshold",
  "random": "Chosen at random",
}
# Of an anomalous image or not, called so or not: the verdict, and whether it is
# right. Here and on the page of `cops demo` green says that a verdict is right
# and red that it is wrong, and nothing else is green or red.
_VERDICTS = {
  (True, True): ("found", True),
  (True, False): ("missed", False),
  (False, True): ("false alarm", False),
  (False, False): ("correct", True),
}
_GLOSSARY = {
  "AUROC": (
    "The probability that something anomalous scores above something normal: 50"
    " is chance, 100 is perfect. Of images by their scores, of pixels by the"
    " anomaly maps."
  ),
  "AP": (
    "Average precision: of what is called anomalous the share that is, averaged"
    " over thresholds from the strictest on. Chance is the share of what is"
    " anomalous."
  ),
  "F1-max": (
    "The largest F1 of all thresholds. F1 is the harmonic mean of precision"
    " (how much of what is called anomalous is) and recall (how much of what is"
    " anomalous is called so)."
  ),
  "AUPRO": (
    "The share of each anomalous region that is found, averaged over regions,"
    " for up to 30% of normal pixels called anomalous: small regions count as"
    " much as large ones."
  ),
  "AUPRO-200": (
    "AUPRO from 200 thresholds, as AnomalyCLIP's authors compute it."
  ),
  "anomaly map": (
    "A score from 0 to 1 for each pixel, shown from black to light yellow."
  ),
  "threshold": (
    "The score from which on an image, or a pixel, is called anomalous. Here"
    " each category's are those of the largest F1."
  ),
}


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
  config = provenance["config"]
  method = config.get("method", "cops")  # As before there were.
  rows = _result_rows(results, method)
  values = {
    "title": f"{methods.find(method).TITLE}: zero-shot anomaly detection",
    "summary": _summary(results),
    "about": _about(provenance),
    "is_toy": config["clip"]["weights"] == DEMO_CLIP,
    "metrics": [metric_title(name) for name in METRICS],
    "rows": rows,
    "has_published": any(
      cell["published"] for row in rows for cell in row["cells"]
    ),
    "glossary": _GLOSSARY,
    "verdicts": _VERDICTS.values(),
    "size": charts,
    "tile_pixels": TILE_PIXELS,
    "line_color": LINE_COLOR,
    "heat": heat_colors(np.linspace(0, 1, 9)[None] ** 2, 0.0, 1.0)[0].tolist(),
    "not_evaluated": group_by_reason({**skipped, **failed}).items(),
    "datasets": [
      _dataset_values(name, result) for name, result in results.items()
    ],
    "facts": _facts(results, provenance),
    "config": json.dumps(config, indent=2),
  }
  for data in values["datasets"]:
    for group in data["pictures"]:
      for picture in group["pictures"]:
        for tile in filter(lambda tile: tile["content"], picture["tiles"]):
          write_file(workdir / tile["file"], tile["content"])
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


def _summary(results):
  """In one sentence: which images were called what."""
  counts = collections.Counter()
  for result in results.values():
    for image in result.images:
      threshold = result.categories[image.category].image_threshold
      if not math.isnan(threshold):
        counts[_verdict(image, threshold)[0]] += 1
  if not counts:
    return (
      "There are no verdicts on images: no category has both normal and"
      " anomalous ones."
    )
  names = list(results)
  data = names[0] if len(names) == 1 else f"{len(names)} data sets"
  num_anomalous = counts["found"] + counts["missed"]
  num_normal = counts["correct"] + counts["false alarm"]
  return (
    f"{counts['found']:,} of {num_anomalous:,} anomalous images of {data} were"
    f" found, and {counts['false alarm']:,} of {num_normal:,} normal ones were"
    " false alarms."
  )


def _verdict(image, threshold):
  return _VERDICTS[image.label == ANOMALY, image.image_score >= threshold]


def _about(provenance):
  """What to know before the numbers."""
  program, *arguments = sys.argv
  now = datetime.datetime.now(datetime.UTC)
  return [
    ("trained on", provenance["trained_on"]),
    ("prompts", provenance["checkpoint"]),
    ("written", f"{now:%Y-%m-%d %H:%M} UTC"),
    ("by", f"{pathlib.Path(program).name} {shlex.join(arguments)}".strip()),
  ]


def _markdown_cell(text):
  """A name as it stands in a table of Markdown."""
  return one_line(text).replace("\\", "\\\\").replace("|", "\\|")


def _result_rows(results, method):
  papers = paper_results(method)
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
      difference = 100 * (values[metric] - published[metric])
      cell |= {
        "published": percent(published[metric]),
        "difference": f"{difference:+.1f}".replace("-", "\N{MINUS SIGN}"),
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
  gigabytes = result.peak_memory_bytes / 1e9
  peak = f", peak memory {gigabytes:.1f} GB" if gigabytes else ""
  return {
    "name": name,
    "anchor": f"data-{name}",
    "summary": (
      f"{len(labels):,} images, {int((labels == ANOMALY).sum()):,} of them"
      f" anomalous, in {len(result.categories)} categories;"
      f" {result.seconds:,.0f} s, {len(labels) / result.seconds:.1f} images/s"
      + peak
    ),
    "categories": categories,
    "reasons": _reasons(result),
    "notes": shorten_list(result.notes),
    "charts": charts.draw_charts(result),
    "has_categories": len(result.categories) > 1,
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
    pictures = [picture for picture in result.pictures if picture.kind == kind]
    shown = [
      _picture_values(
        picture,
        result.categories[picture.image.category],
        f"pictures/{name}/{kind}-{number}",
      )
      for number, picture in enumerate(pictures, start=1)
    ]
    if shown:
      groups.append({"title": title, "pictures": shown})
  return groups


def _picture_values(picture, category, stem):
  image, threshold = picture.image, category.image_threshold
  truth = "anomaly" if image.label == ANOMALY else "normal"
  verdict, is_right = f"{truth}, no verdict", None
  if not math.isnan(threshold):
    verdict, is_right = _verdict(image, threshold)
  tiles = []
  for title in ("image", "truth", "map", "overlay"):
    content = picture.tiles.get(title, b"")
    source = f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
    tiles.append(
      {
        "title": title,
        "file": f"{stem}-{title}.jpg",
        "content": content,
        "source": source if content else "",
      }
    )
  return {
    "path": image.path,
    "tiles": tiles,
    "verdict": verdict,
    "is_right": is_right,
    "text": (
      f"{image.category}, score {image.image_score:.3f}, threshold"
      f" {_number(threshold)}"
    ),
    "scale": _scale(picture.low, picture.high, category.pixel_threshold),
  }


def _scale(low, high, threshold):
  """Of the colour bar its ends, and what is marked on it and where."""
  scale = {"low": f"{low:.2f}", "high": f"{high:.2f}", "threshold": None}
  if not math.isnan(threshold):
    place = (threshold - low) / max(high - low, 1e-12)
    place = math.sqrt(min(max(place, 0), 1))  # As `heat_colors` has it.
    scale |= {"threshold": _number(threshold), "percent": round(100 * place, 1)}
  return scale


def _facts(results, provenance):
  versions = ", ".join(
    f"{name} {version}" for name, version in provenance["versions"].items()
  )
  facts = [
    ("method", provenance["config"].get("method", "cops")),
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
