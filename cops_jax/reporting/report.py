"""A report of an evaluation to look at: report.html."""

from __future__ import annotations

import collections
import datetime
import json
import math
import pathlib
import shlex
import sys
from importlib import resources
from typing import Any

import numpy as np

from cops_jax import methods
from cops_jax.evaluation.results import Evaluated, group_means
from cops_jax.files import write_file
from cops_jax.images.drawing import LINE_COLOR, TILE_PIXELS, heat_colors
from cops_jax.metrics import METRICS
from cops_jax.paths import AnyPath
from cops_jax.reporting import metric_title
from cops_jax.reporting.charts import draw_charts
from cops_jax.reporting.papers import paper_results
from cops_jax.reporting.tables import domains, percent
from cops_jax.scoring import ANOMALY
from cops_jax.tables import group_by_reason, shorten_list
from cops_jax.weights import DEMO_CLIP

_KINDS = {
  "best": "Best: furthest on the right side of their category's threshold",
  "worst": "Worst: furthest on the wrong side, or nearest to the threshold",
  "random": "Chosen at random",
}
# By whether an image is anomalous and whether it is called so: the verdict, and
# whether it is right. Here and on the page of `cops demo` right verdicts are
# green, wrong ones are red, and nothing else is green or red.
_VERDICTS = {
  (True, True): ("found", True),
  (True, False): ("missed", False),
  (False, True): ("false alarm", False),
  (False, False): ("correct", True),
}


def write_report(workdir: AnyPath, evaluated: Evaluated) -> AnyPath:
  """Writes report.html, which needs no other file and no network.

  Args:
    workdir: receives the file.
    evaluated: what to show.

  Returns:
    The file's path.

  Raises:
    InputError: it cannot be written.
  """
  provenance, results = evaluated.provenance, evaluated.results
  config = provenance["config"]
  method = config.get("method", "cops")
  heat = heat_colors(np.linspace(0, 1, 9)[None] ** 2, 0.0, 1.0)[0].tolist()
  rows = _result_rows(results, method)
  page = make_environment().get_template("report.html.jinja")
  text = page.render(
    title=f"{methods.find(method).TITLE}: zero-shot anomaly detection",
    summary=_summarize(results),
    about=_about(provenance),
    is_toy=config["clip"]["weights"] == DEMO_CLIP,
    metrics=[metric_title(name) for name in METRICS],
    rows=rows,
    has_papers=any(cell.get("paper") for row in rows for cell in row["cells"]),
    verdicts=_VERDICTS.values(),
    tile_pixels=TILE_PIXELS,
    line_color=LINE_COLOR,
    heat=heat,
    not_evaluated=group_by_reason({**evaluated.skipped, **evaluated.failed}),
    datasets=[_describe(name, result) for name, result in results.items()],
    facts=_facts(results, provenance),
    config=json.dumps(config, indent=2),
  )
  write_file(workdir / "report.html", text)
  return workdir / "report.html"


def make_environment() -> Any:
  """Returns jinja2's environment with the templates of this package."""
  import jinja2

  folder = resources.files("cops_jax.reporting").joinpath("templates")
  return jinja2.Environment(
    loader=jinja2.FunctionLoader(
      lambda name: folder.joinpath(name).read_text("utf-8")
    ),
    autoescape=lambda name: ".html" in name,
    undefined=jinja2.StrictUndefined,
  )


def _summarize(results):
  """Says in one sentence how many images were called what."""
  counts = collections.Counter()
  for result in results.values():
    for image in result.images:
      threshold = result.categories[image.category].image_threshold
      counts[_verdict(image, threshold)] += 1
  if not any(counts[verdict] for verdict in _VERDICTS.values()):
    return (
      "There are no verdicts on images: no category has both normal and"
      " anomalous ones."
    )
  found, missed, alarms, correct = (counts[v] for v in _VERDICTS.values())
  data = (
    f"{len(results)} data sets" if len(results) > 1 else next(iter(results))
  )
  return (
    f"{found:,} of {found + missed:,} anomalous images of {data} were found,"
    f" and {alarms:,} of {alarms + correct:,} normal ones were false alarms."
  )


def _verdict(image, threshold):
  is_anomalous = image.label == ANOMALY
  if math.isnan(threshold):
    return f"{'anomaly' if is_anomalous else 'normal'}, no verdict", None
  return _VERDICTS[is_anomalous, image.image_score >= threshold]


def _about(provenance):
  """Returns what to know before the numbers."""
  program, *arguments = sys.argv
  now = datetime.datetime.now(datetime.UTC)
  return {
    "trained on": provenance["trained_on"],
    "prompts": provenance["checkpoint"],
    "written": f"{now:%Y-%m-%d %H:%M} UTC",
    "by": f"{pathlib.Path(program).name} {shlex.join(arguments)}".strip(),
  }


def _result_rows(results, method):
  papers = paper_results(method)
  rows = [
    {
      "name": name,
      "cells": _cells(
        result.mean, papers.get(name, {}) if result.is_published else {}
      ),
    }
    for name, result in results.items()
  ]
  # The paper's means would be over other data sets unless all are there.
  rows += [
    {"name": name, "is_mean": True, "cells": _cells(mean)}
    for name, mean in group_means(results, domains()).items()
  ]
  return rows


def _cells(values, paper=(), reasons=()):
  """Returns each metric's text, the paper's, or why it is undefined."""
  cells = []
  for metric in METRICS:
    value = values[metric]
    cell = {"value": percent(value)}
    if metric in reasons:
      cell["reason"] = reasons[metric]
    elif metric in paper and not math.isnan(value):
      difference = percent(value - paper[metric], "+.1f")
      cell["paper"] = percent(paper[metric])
      cell["difference"] = difference.replace("-", "\N{MINUS SIGN}")
    cells.append(cell)
  return cells


def _describe(name, result):
  """Returns the values of a data set's section."""
  rows = [
    {
      "name": category,
      "cells": [
        *_cells(row.metrics, reasons=row.undefined),
        *(
          {"value": _number(v)}
          for v in (row.image_threshold, row.pixel_threshold)
        ),
      ],
    }
    for category, row in result.categories.items()
  ]
  rows.append(
    {
      "name": "mean",
      "is_mean": True,
      "cells": [*_cells(result.mean), {"value": ""}, {"value": ""}],
    }
  )
  number = len(result.images)
  gigabytes = result.peak_memory_bytes / 1e9
  return {
    "name": name,
    "summary": (
      f"{number:,} images, {sum(image.label for image in result.images):,} of"
      f" them anomalous, in {len(result.categories)} categories;"
      f" {result.seconds:,.0f} s, {number / result.seconds:.1f} images/s"
      + (f", peak memory {gigabytes:.1f} GB" if gigabytes else "")
    ),
    "categories": rows,
    "notes": [*_reasons(result), *shorten_list(result.notes)],
    "charts": draw_charts(result),
    "has_pixels": any(
      "pixel_pro" in r.curves for r in result.categories.values()
    ),
    "pictures": {
      title: pictures
      for kind, title in _KINDS.items()
      if (
        pictures := [
          _picture(picture, result.categories[picture.image.category])
          for picture in result.pictures
          if picture.kind == kind
        ]
      )
    },
    "skipped": result.skipped,
  }


def _number(value):
  return "n/a" if math.isnan(value) else f"{value:.3f}"


def _reasons(result):
  """Returns why metrics are undefined, a sentence for each reason."""
  found = {}
  for category, row in result.categories.items():
    for metric, reason in row.undefined.items():
      names, places = found.setdefault(reason, ({}, {}))
      names[metric_title(metric)] = places[category] = None
  for reason, (names, places) in found.items():
    is_everywhere = len(places) == len(result.categories)
    where = "" if is_everywhere else f" in {', '.join(places)}"
    yield f"n/a{where}: {', '.join(names)} ({reason})"


def _picture(picture, category):
  image, threshold = picture.image, category.image_threshold
  verdict, is_right = _verdict(image, threshold)
  values = {
    "path": image.path,
    "verdict": verdict,
    "is_right": is_right,
    "text": (
      f"{image.category}, score {image.image_score:.3f}, threshold"
      f" {_number(threshold)}"
    ),
    "tiles": {
      title: picture.tiles.get(title, "")
      for title in ("image", "truth", "map", "overlay")
    },
    "low": f"{picture.low:.2f}",
    "high": f"{picture.high:.2f}",
  }
  threshold = category.pixel_threshold
  if not math.isnan(threshold):
    place = (threshold - picture.low) / max(picture.high - picture.low, 1e-12)
    place = math.sqrt(min(max(place, 0), 1))  # As in `heat_colors`.
    values |= {"threshold": _number(threshold), "place": round(100 * place, 1)}
  return values


def _facts(results, provenance):
  versions = ", ".join(
    f"{name} {version}" for name, version in provenance["versions"].items()
  )
  return {
    "method": provenance["config"].get("method", "cops"),
    "prompts' SHA-256": provenance["prompts_sha256"],
    "CLIP": provenance["config"]["clip"]["weights"],
    "CLIP's SHA-256": provenance["clip_sha256"],
    "device": provenance["device"],
    "versions": f"cops_jax {provenance['version']}, {versions}",
    **{
      f"data of {name}": f"{result.identity}, SHA-256 {result.data_sha256}"
      for name, result in results.items()
    },
  }
