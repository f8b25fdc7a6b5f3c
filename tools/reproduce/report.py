"""A paper's table beside the runs' own: report.html, table.txt, .csv, .json."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cops_jax import __version__
from cops_jax.evaluation.results import without_nan
from cops_jax.files import seal, write_file
from cops_jax.methods import find
from cops_jax.metrics import METRICS
from cops_jax.reporting import domains, metric_title
from cops_jax.reporting.papers import paper_results
from cops_jax.reporting.tables import read_results, write_csv
from cops_jax.tables import align
from tools.reproduce.plan import is_trained

_COLUMNS = ("paper", "ours", "diff")


@dataclasses.dataclass(frozen=True)
class Cell:
  """A metric by one method, in percent; NaN where there is none.

  Attributes:
    paper: the paper's.
    values: of the seeds.
    is_comparable: whether the data are the published ones.
  """

  paper: float
  values: Sequence[float]
  is_comparable: bool

  @property
  def mean(self) -> float:
    """Over the seeds."""
    return float(np.mean(self.values)) if self.values else math.nan

  @property
  def deviation(self) -> float:
    """The sample's standard deviation; NaN of fewer than two seeds."""
    if len(self.values) < 2:
      return math.nan
    return float(np.std(self.values, ddof=1))

  @property
  def difference(self) -> float:
    """Of the mean to the paper's; NaN on other data."""
    return self.mean - self.paper if self.is_comparable else math.nan

  @property
  def texts(self) -> tuple[str, str, str]:
    """The paper's number, ours, and the difference."""
    mean = _number(self.mean)
    if not math.isnan(self.deviation):
      mean += f" ± {self.deviation:.1f}"
    return _number(self.paper), mean, _number(self.difference, "+.1f")


@dataclasses.dataclass(frozen=True)
class Row:
  """A metric of a data set or a group of them, by method."""

  name: str
  metric: str
  cells: Mapping[str, Cell]


def _number(value, form=".1f"):
  return "" if math.isnan(value) else f"{value:{form}}"


# A run's results.json by recipe and seed.
Results = Mapping[tuple[str, int], Mapping[str, Any]]


def read_runs(
  configs: Mapping[str, Any],
  runs: Sequence[tuple[str, int]],
  workdir: pathlib.Path,
) -> Results:
  """Contents of results.json by recipe and seed, of those with this config.

  Args:
    configs: by recipe.
    runs: recipes and seeds.
    workdir: that has a folder for each, see `tools.runs.run_configs`.
  """
  found = {}
  for name, seed in runs:
    folder = workdir / name / f"seed-{seed}"
    if (folder / "results.json").exists():
      content = read_results(folder)
      config = json.loads(json.dumps({**configs[name].to_dict(), "seed": seed}))
      if content["config"] == config:  # Else it is of an earlier call.
        found[name, seed] = content
  return found


def make_rows(configs: Mapping[str, Any], results: Results) -> list[Row]:
  """A row for each data set and metric, and for the means of groups.

  The metrics are those that CoPS's paper, or the methods' own, has of the data
  set. Groups are means over the data sets for which all methods have a number
  of their own; a paper's is over the same ones, and absent unless it has all.

  Args:
    configs: by recipe.
    results: see `read_runs`.
  """
  methods = list(dict.fromkeys(configs[name].method for name, _ in results))
  cells = {}
  for (name, _), content in results.items():
    method = configs[name].method
    for dataset, data in content["datasets"].items():
      for metric, value in data["mean"].items():
        paper = paper_results(method).get(dataset, {}).get(metric, math.nan)
        paper *= 100
        cell = cells.setdefault(
          (dataset, metric, method), Cell(paper, [], data["is_published"])
        )
        if value is not None:
          cell.values.append(100 * value)
  rows = []
  for dataset in domains():
    reported = {
      metric
      for method in ("cops", *methods)
      for metric in paper_results(method).get(dataset, {})
    }
    for metric in filter(reported.__contains__, METRICS):
      found = {
        method: cells[dataset, metric, method]
        for method in methods
        if (dataset, metric, method) in cells
      }
      if found:
        rows.append(Row(dataset, metric, found))
  return [*rows, *_group_rows(rows, methods)]


def _group_rows(rows: Sequence[Row], methods: Sequence[str]) -> Iterator[Row]:
  kinds = domains()
  for group, names in (
    ("industrial", {n for n, kind in kinds.items() if kind == "industrial"}),
    ("medical", {n for n, kind in kinds.items() if kind == "medical"}),
    ("all", set(kinds)),
  ):
    for metric in METRICS:
      members = [
        row.cells
        for row in rows
        if row.name in names
        and row.metric == metric
        and all(row.cells.get(m, _NONE).values for m in methods)
      ]
      if len(members) > 1:
        yield Row(
          f"{group}, mean of {len(members)}",
          metric,
          {m: _mean([cells[m] for cells in members]) for m in methods},
        )


_NONE = Cell(math.nan, (), False)


def _mean(cells):
  number = min(len(cell.values) for cell in cells)
  return Cell(
    float(np.mean([cell.paper for cell in cells])),
    [
      float(np.mean([cell.values[seed] for cell in cells]))
      for seed in range(number)
    ],
    all(cell.is_comparable for cell in cells),
  )


def format_table(rows: Sequence[Row]) -> str:
  """The rows to read, in percent, differences in percentage points."""
  methods = _methods(rows)
  many = len(methods) > 1
  header = ["data set", "metric"]
  for method in methods:
    header += [f"{method} {name}" if many else name for name in _COLUMNS]
  lines = [header]
  for row in rows:
    lines.append([row.name, metric_title(row.metric)])
    for method in methods:
      lines[-1] += row.cells.get(method, _NONE).texts
  texts = align(lines, num_text_columns=2)
  others = [
    row.name
    for row in rows
    if not all(cell.is_comparable for cell in row.cells.values())
    and row.name in domains()
  ]
  if others:
    texts.append(
      "no difference where the images are others than the published ones:"
      f" {', '.join(dict.fromkeys(others))}"
    )
  return "\n".join(texts)


def write(
  workdir: pathlib.Path,
  configs: Mapping[str, Any],
  overrides: Mapping[str, Any],
  results: Results,
  failures: Mapping[str, str],
) -> pathlib.Path:
  """Writes the table, in all its forms; gives the page's path.

  Args:
    workdir: receives them.
    configs: by recipe.
    overrides: fields by name in which they are not the papers' recipes.
    results: see `read_runs`.
    failures: why runs have failed, by name.

  Raises:
    InputError: they cannot be written.
  """
  import jinja2

  rows = make_rows(configs, results)
  table = format_table(rows)
  write_file(workdir / "table.txt", table + "\n")
  write_csv(
    workdir / "table.csv",
    (
      *("data set", "metric", "method", "paper", "mean", "deviation"),
      *("difference", "seeds", "published data"),
    ),
    (
      (
        *(row.name, row.metric, method),
        *map(_number, (cell.paper, cell.mean, cell.deviation, cell.difference)),
        *(len(cell.values), cell.is_comparable),
      )
      for row in rows
      for method, cell in row.cells.items()
    ),
  )
  runs = {
    f"{name}/seed-{seed}": found for (name, seed), found in results.items()
  }
  content = {
    "version": __version__,
    "overrides": overrides,
    "rows": [dataclasses.asdict(row) for row in rows],
    "runs": runs,
    "failures": failures,
  }
  write_file(workdir / "table.json", seal(without_nan(content), indent=2))
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
  )
  page = environment.get_template("report.html.jinja").render(
    methods={name: find(name).TITLE for name in _methods(rows)},
    metrics={name: metric_title(name) for name in _metrics(rows)},
    rows=_page_rows(rows),
    runs=[
      _describe_run(configs[name], seed, name, found)
      for (name, seed), found in results.items()
    ],
    notes=_notes(results),
    overrides=overrides,
    failures=failures,
    facts=_facts(results),
  )
  write_file(workdir / "report.html", page)
  return workdir / "report.html"


def _methods(rows):
  return list(dict.fromkeys(method for row in rows for method in row.cells))


def _metrics(rows):
  found = {row.metric for row in rows}
  return [metric for metric in METRICS if metric in found]


def _page_rows(rows):
  """A row for each data set: texts of each metric by each method."""
  names = dict.fromkeys(row.name for row in rows)
  cells = {(row.name, row.metric): row.cells for row in rows}
  return [
    {
      "name": name,
      "is_group": name not in domains(),
      "cells": [
        dict(
          zip(
            _COLUMNS,
            cells.get((name, metric), {}).get(method, _NONE).texts,
            strict=True,
          )
        )
        for metric in _metrics(rows)
        for method in _methods(rows)
      ],
    }
    for name in names
  ]


def _describe_run(config, seed, name, found):
  training = f"trained on {config.train.dataset}, " * is_trained(config.method)
  seconds = sum(row["seconds"] for row in found["datasets"].values())
  images = sum(row["num_images"] for row in found["datasets"].values())
  return {
    "name": f"{name}, seed {seed}",
    "page": f"{name}/seed-{seed}/report.html",
    "text": f"{training}evaluated on {images:,} images in {seconds:,.0f} s",
  }


def _notes(results):
  """What is odd about the data, by data set."""
  notes, hashes = {}, {}
  for found in results.values():
    for name, row in found["datasets"].items():
      notes.setdefault(name, {}).update(dict.fromkeys(row["notes"]))
      hashes.setdefault(name, set()).add(row["data_sha256"])
  for name, found in hashes.items():
    if len(found) > 1:
      notes[name]["the data differ from run to run"] = None
  return {name: "; ".join(texts) for name, texts in notes.items() if texts}


def _facts(results):
  """What made the numbers, each once."""
  facts = {}
  for found in results.values():
    versions = found["versions"].items()
    for name, value in (
      ("CLIP", found["config"]["clip"]["weights"]),
      ("CLIP's SHA-256", found["clip_sha256"]),
      ("CLIP's type", found["config"]["clip"]["dtype"]),
      ("device", found["device"]),
      ("cops_jax", found["version"]),
      ("versions", ", ".join(f"{key} {value}" for key, value in versions)),
    ):
      facts.setdefault(name, {})[value] = None
  return {name: "; ".join(values) for name, values in facts.items()}
