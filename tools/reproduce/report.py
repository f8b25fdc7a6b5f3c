"""The papers' numbers beside the runs' own, as a table and a page."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from cops_jax import methods, reporting
from cops_jax.files import write_file
from cops_jax.metrics import METRICS
from cops_jax.reporting.comparison import Runs, compare, format_rows
from cops_jax.reporting.papers import paper_results
from tools.runs import write_table


def make_rows(configs: Mapping[str, Any], found: Runs):
  """Returns `comparison.compare`'s rows of the methods, beside their papers.

  Their metrics are those of CoPS's paper and of the methods' own.

  Args:
    configs: by recipe.
    found: see `runs.run_all`.
  """
  merged = {}  # The seeds of a method's two recipes.
  for recipe, contents in found.items():
    runs = merged.setdefault(configs[recipe].method, {})
    for seed, content in contents.items():
      datasets = runs.setdefault(seed, {"datasets": {}})["datasets"]
      datasets |= content["datasets"]
  papers = {name: paper_results(name) for name in ("cops", *merged)}
  reported = {
    metric
    for paper in papers.values()
    for results in paper.values()
    for metric in results
  }
  rows = compare(merged, papers=papers)
  return [row for row in rows if row.metric in reported]


def write(
  workdir: pathlib.Path,
  configs: Mapping[str, Any],
  overrides: Mapping[str, Any],
  found: Runs,
  failures: Mapping[str, str],
) -> None:
  """Writes report.html and the files of `runs.write_table`.

  Args:
    workdir: receives them.
    configs: by recipe.
    overrides: fields by name in which they are not the papers' recipes.
    found, failures: see `runs.run_all`.
  """
  import jinja2

  rows = make_rows(configs, found)
  text = format_rows(rows, "method", "paper")
  others = dict.fromkeys(row.dataset for row in rows if not row.is_comparable)
  if others:
    text += (
      "\nno difference where the images are not the published ones:"
      f" {', '.join(others)}"
    )
  write_table(workdir, rows, text, found, failures, overrides=overrides)
  contents = {
    (recipe, seed): content
    for recipe, seeds in found.items()
    for seed, content in seeds.items()
  }
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
  )
  page = environment.get_template("report.html.jinja").render(
    methods={row.name: methods.find(row.name).TITLE for row in rows},
    metrics={
      metric: reporting.metric_title(metric)
      for metric in METRICS
      if any(row.metric == metric for row in rows)
    },
    rows={(row.dataset, row.name, row.metric): row for row in rows},
    names=dict.fromkeys(row.dataset for row in rows),
    runs=contents,
    notes=_collect(
      (name, note)
      for content in contents.values()
      for name, row in content["datasets"].items()
      for note in row["notes"]
    ),
    overrides=overrides,
    failures=failures,
    facts=_collect(
      fact for content in contents.values() for fact in _facts(content)
    ),
  )
  write_file(workdir / "report.html", page)
  print(f"report: {workdir / 'report.html'}")


def _collect(pairs):
  """Returns the different values by name."""
  found = {}
  for name, value in pairs:
    found.setdefault(name, {})[value] = None
  return {name: "; ".join(values) for name, values in found.items()}


def _facts(content):
  versions = ", ".join(f"{k} {v}" for k, v in content["versions"].items())
  clip = content["config"]["clip"]
  return (
    ("CLIP", clip["weights"]),
    ("CLIP's SHA-256", content["clip_sha256"]),
    ("CLIP's type", clip["dtype"]),
    ("device", content["device"]),
    ("cops_jax", content["version"]),
    ("versions", versions),
  )
