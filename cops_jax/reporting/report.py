"""The report of an evaluation, report.html."""

from __future__ import annotations

import collections
import datetime
import math
import os
import pathlib
import shlex
import sys
from importlib import resources
from typing import Any

import numpy as np

from cops_jax import methods
from cops_jax.evaluation.results import Evaluated, group_means
from cops_jax.files import to_json, write_file
from cops_jax.images.drawing import LINE_COLOR, TILE_PIXELS, heat_colors
from cops_jax.metrics import METRICS
from cops_jax.paths import AnyPath, readable, to_path
from cops_jax.reporting.charts import draw_charts
from cops_jax.reporting.papers import (
  num_normal_images,
  paper_results,
  reproduced_results,
)
from cops_jax.reporting.tables import (
  describe_normal_images,
  domains,
  percent,
  write_results,
)
from cops_jax.scoring import ANOMALY
from cops_jax.tables import count_of, group_by_reason, inflect, shorten_list
from cops_jax.weights.clip import DEMO_CLIP

# Keys: True if the image is anomalous, and True if it is called anomalous.
# Values: name of the verdict, and True if it is right. Here and on the page of
# `cops demo`, right verdicts are green and wrong verdicts are red. Nothing else
# is green or red.
_VERDICTS = {
  (True, True): ("found", True),
  (True, False): ("missed", False),
  (False, True): ("false alarm", False),
  (False, False): ("correct", True),
}


def write(workdir: str | os.PathLike, evaluated: Evaluated) -> AnyPath:
  """Writes report.html, results.json and scores.csv; returns the page's path.

  The page needs no other file and no network.

  Raises:
    InputError: if a file cannot be written.
  """
  workdir = to_path(workdir)
  write_results(workdir, evaluated)
  provenance, results = evaluated.provenance, evaluated.results
  config = {"method": "cops", **provenance["config"]}
  method = config["method"]
  means = {name: result.mean for name, result in results.items()}
  papers = {
    name: paper
    for name, paper in paper_results(config).items()
    if name in results and results[name].is_published
  }
  text = render_page(
    "report.html.jinja",
    title=f"{methods.find(method).TITLE}: {_describe_task(config)}",
    summary=_summarize(results),
    provenance=provenance,
    method=method,
    is_toy=config["backbone"]["weights"] == DEMO_CLIP,
    metrics=METRICS,
    results=results,
    # Papers' means are not shown, because they can include other data sets.
    means=means | group_means(results, domains()),
    papers=papers,
    reproduced="; ".join(
      filter(None, (reproduced_results(config, name) for name in papers))
    ),
    has_papers=any(
      not math.isnan(means[name][metric])
      for name, paper in papers.items()
      for metric in paper
    ),
    verdicts=_VERDICTS.values(),
    verdict=_verdict,
    place=_place,
    notes=lambda result: [*_reasons(result), *shorten_list(result.notes)],
    normal_images=describe_normal_images,
    draw_charts=draw_charts,
    tile_pixels=TILE_PIXELS,
    not_evaluated=group_by_reason({**evaluated.skipped, **evaluated.failed}),
    config=to_json(config, indent=2),
  )
  write_file(workdir / "report.html", text)
  return workdir / "report.html"


def render_page(template: str, **values: Any) -> str:
  """Returns the page of a template of this package.

  The command, the time and the colours of anomaly maps are added to `values`.
  """
  program, *arguments = sys.argv
  command = f"{pathlib.Path(program).name} {shlex.join(arguments)}".strip()
  return (
    make_environment()
    .get_template(template)
    .render(
      **values,
      command=readable(command),
      now=datetime.datetime.now(datetime.UTC),
      heat=heat_colors(np.linspace(0, 1, 9)[None] ** 2, 0.0, 1.0)[0].tolist(),
      line_color=LINE_COLOR,
    )
  )


def make_environment() -> Any:
  """Returns a jinja2 environment with the templates of this package."""
  import jinja2

  folder = resources.files("cops_jax.reporting").joinpath("templates")
  environment = jinja2.Environment(
    loader=jinja2.FunctionLoader(
      lambda name: folder.joinpath(name).read_text("utf-8")
    ),
    autoescape=lambda name: ".html" in name,
    undefined=jinja2.StrictUndefined,
  )
  environment.filters["inflect"] = inflect
  environment.filters["percent"] = percent
  environment.filters["number"] = lambda value: (
    "n/a" if math.isnan(value) else f"{value:.3f}"
  )
  return environment


def _describe_task(config):
  number = num_normal_images(config)
  if not number:
    return "zero-shot anomaly detection"
  images = count_of(number, "reference image")
  return f"anomaly detection with {images} of each category"


def _summarize(results):
  """Returns a sentence with the numbers of right and wrong verdicts."""
  counts = collections.Counter()
  for result in results.values():
    for image in result.images:
      threshold = result.categories[image.category].image_threshold
      counts[_verdict(image, threshold)] += 1
  if not any(counts[verdict] for verdict in _VERDICTS.values()):
    return (
      "There are no verdicts, because no category has both normal and anomalous"
      " images."
    )
  found, missed, alarms, correct = (counts[v] for v in _VERDICTS.values())
  data = (
    f"{len(results)} data sets" if len(results) > 1 else next(iter(results))
  )
  return (
    f"{found:,} of {found + missed:,} anomalous images of {data} were found;"
    f" {alarms:,} of {alarms + correct:,} normal images were false alarms."
  )


def _verdict(image, threshold):
  is_anomalous = image.label == ANOMALY
  if math.isnan(threshold):
    return f"{'anomaly' if is_anomalous else 'normal'}, no verdict", None
  return _VERDICTS[is_anomalous, image.image_score >= threshold]


def _reasons(result):
  """Yields a line for each reason why metrics are undefined."""
  found = {}
  for category, row in result.categories.items():
    for metric, reason in row.undefined.items():
      names, places = found.setdefault(reason, ({}, {}))
      names[METRICS[metric]] = places[category] = None
  for reason, (names, places) in found.items():
    is_everywhere = len(places) == len(result.categories)
    where = "" if is_everywhere else f" in {', '.join(places)}"
    yield f"n/a{where}: {', '.join(names)} ({reason})"


def _place(picture, threshold):
  """Returns the position of a pixel threshold on the colour bar, in percent."""
  place = (threshold - picture.low) / max(picture.high - picture.low, 1e-12)
  # The bar is square-rooted, as colours are in `heat_colors`.
  return round(100 * math.sqrt(min(max(place, 0), 1)), 1)
