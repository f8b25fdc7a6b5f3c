"""Tables that compare runs: means, standard deviations and differences."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from cops_jax.metrics import METRICS
from cops_jax.paths import AnyPath
from cops_jax.reporting.tables import domains, means_of, percent, write_csv
from cops_jax.tables import align, one_line

# Contents of results.json by name and run, such as a method and a seed.
Runs = Mapping[str, Mapping[Hashable, Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Row:
  """A metric of a data set over the runs of one name, in [0, 1].

  Attributes:
    dataset: name of the data set, or "industrial mean", "medical mean" or
      "overall mean".
    name: name that the runs share.
    metric: one of `cops_jax.metrics.METRICS`.
    values: defined values by run.
    reference: value to compare the mean with; NaN if there is none.
    is_comparable: True if the reference was measured on the same data.
    is_alike: True if all runs were evaluated on the same data.
  """

  dataset: str
  name: str
  metric: str
  values: Mapping[Hashable, float]
  reference: float = math.nan
  is_comparable: bool = True
  is_alike: bool = True

  @property
  def mean(self) -> float:
    """Mean over the runs; NaN if there are none or their data differ."""
    if not self.values or (len(self.values) > 1 and not self.is_alike):
      return math.nan
    return _mean(self.values.values())

  @property
  def deviation(self) -> float:
    """Sample standard deviation; NaN for fewer than two runs."""
    if len(self.values) < 2 or not self.is_alike:
      return math.nan
    return float(np.std(list(self.values.values()), ddof=1))

  @property
  def difference(self) -> float:
    """Mean minus reference; NaN if they are not comparable."""
    return self.mean - self.reference if self.is_comparable else math.nan

  @property
  def text(self) -> str:
    """Mean in percent, with deviation and difference if they are defined."""
    if self.values and math.isnan(self.mean):
      return "data differ"
    text = percent(self.mean)
    if not math.isnan(self.deviation):
      text += f" ± {percent(self.deviation)}"
    if not math.isnan(self.difference):
      text += f" ({percent(self.difference, '+.1f')})"
    return text


def compare(
  runs: Runs,
  *,
  base: str = "",
  papers: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
) -> list[Row]:
  """Returns the rows of a table of means over runs.

  The last rows are means over groups of data sets. They include the data sets
  for which every name has a mean.

  Args:
    runs: results to compare.
    base: name whose mean over the same runs is the reference.
    papers: references by name, data set and metric. They are compared only if
      the runs used the published data.
  """
  means = {
    name: {run: means_of(content) for run, content in contents.items()}
    for name, contents in runs.items()
  }
  facts = {}  # Results of all runs by data set.
  for contents in runs.values():
    for content in contents.values():
      for dataset, row in content["datasets"].items():
        facts.setdefault(dataset, []).append(row)
  rows = []
  for dataset, found in facts.items():
    is_published = all(row.get("is_published") for row in found)
    is_alike = len({row["data_sha256"] for row in found}) == 1
    for name in runs:
      for metric in METRICS:
        values = _values(means[name], dataset, metric)
        reference = math.nan
        if papers:
          paper = papers.get(name, {}).get(dataset, {})
          reference = paper.get(metric, math.nan)
        elif base and name != base:
          same = _values(means[base], dataset, metric)
          if values and values.keys() <= same.keys():
            reference = _mean(same[run] for run in values)
        is_comparable = is_published or not papers
        if values or not math.isnan(reference):
          rows.append(
            Row(
              *(dataset, name, metric, values),
              *(reference, is_comparable, is_alike),
            )
          )
  return [*rows, *_group_rows(rows, list(runs))]


def _values(means, dataset, metric):
  return {
    run: datasets[dataset][metric]
    for run, datasets in means.items()
    if dataset in datasets and not math.isnan(datasets[dataset][metric])
  }


def _group_rows(rows, names):
  kinds = domains()
  found = {(row.dataset, row.name, row.metric): row for row in rows}
  datasets = dict.fromkeys(row.dataset for row in rows)
  for kind in ("industrial", "medical", "overall"):
    for metric in METRICS:
      members = [
        [found.get((dataset, name, metric)) for name in names]
        for dataset in datasets
        if kind in ("overall", kinds.get(dataset))
      ]
      members = [
        rows
        for rows in members
        if all(row and not math.isnan(row.mean) for row in rows)
      ]
      if len(members) < 2:
        continue
      for name, own in zip(names, zip(*members, strict=True), strict=True):
        shared = [
          run for run in own[0].values if all(run in row.values for row in own)
        ]
        yield Row(
          *(f"{kind} mean", name, metric),
          {run: _mean(row.values[run] for row in own) for run in shared},
          _mean(row.reference for row in own),
          all(row.is_comparable for row in own),
        )


def _mean(values):
  return float(np.mean(list(values)))


def format_rows(rows: Sequence[Row], title: str, reference: str = "") -> str:
  """Returns a text table in percent with a column for each metric.

  Args:
    rows: rows from `compare`.
    title: heading of the column of names.
    reference: label of the references' lines; an empty string omits them.
  """
  metrics = [m for m in METRICS if any(row.metric == m for row in rows)]
  lines = {}
  for row in rows:
    place = row.dataset, row.name
    line = lines.setdefault(place, [0, {}, {}])
    line[0] = max(line[0], len(row.values))
    line[1][row.metric] = row.text
    if reference and not math.isnan(row.reference):
      line[2][row.metric] = percent(row.reference)
  table = [["data set", title, "runs", *map(METRICS.get, metrics)]]
  for (dataset, name), (number, texts, references) in lines.items():
    start = [one_line(dataset), one_line(name)]
    cells = [texts.get(metric, "n/a") for metric in metrics]
    table.append([*start, str(number), *cells])
    if references:
      cells = [references.get(metric, "") for metric in metrics]
      table.append([start[0], f"{start[1]}, {reference}", "", *cells])
  return "\n".join(align(table, num_text_columns=2))


def write_rows(path: AnyPath, rows: Sequence[Row]) -> None:
  """Writes rows from `compare` as comma-separated values in [0, 1].

  Raises:
    InputError: if the file cannot be written.
  """
  write_csv(
    path,
    (
      *("dataset", "name", "metric", "runs", "mean", "deviation"),
      *("reference", "difference"),
    ),
    (
      (
        *(row.dataset, row.name, row.metric, len(row.values), row.mean),
        *(row.deviation, row.reference, row.difference),
      )
      for row in rows
    ),
  )
