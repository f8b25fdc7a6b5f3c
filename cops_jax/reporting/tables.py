"""Results as tables and files."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cops_jax.errors import InputError
from cops_jax.evaluation.results import (
  DatasetResult,
  ImageResult,
  group_means,
  without_nan,
)
from cops_jax.files import read_file, seal, unseal, write_file
from cops_jax.metrics import METRICS
from cops_jax.paths import AnyPath
from cops_jax.tables import align, one_line, shorten_list

# To be increased when a field of results.json changes meaning or is removed.
SCHEMA_VERSION = 1


def metric_title(name: str) -> str:
  """What a metric is called in tables: "image AUROC" for image_auroc."""
  level, _, rest = name.partition("_")
  titles = {
    "auroc": "AUROC",
    "ap": "AP",
    "f1_max": "F1-max",
    "aupro": "AUPRO",
    "aupro_200": "AUPRO-200",
  }
  return f"{level} {titles[rest]}"


def percent(value: float) -> str:
  """A metric for tables; `n/a` where it is undefined."""
  return "n/a" if math.isnan(value) else f"{100 * value:.1f}"


def domains() -> dict[str, str]:
  """The published data sets' domains, by name."""
  from cops_jax.datasets.specifications import SPECIFICATIONS

  return {name: row.domain for name, row in SPECIFICATIONS.items()}


def table_rows(
  results: Mapping[str, DatasetResult],
) -> Iterator[tuple[str, str, Mapping[str, float]]]:
  """Data set, category and metrics: categories, their means, groups' means."""
  for name, result in results.items():
    for category, row in result.categories.items():
      yield name, category, row.metrics
    yield name, "mean", result.mean
  for group, means in group_means(results, domains()).items():
    yield group, "mean", means


def format_table(results: Mapping[str, DatasetResult]) -> str:
  """A table to read, in percent; `n/a` where a metric is undefined."""
  lines = [("data set", "category", *map(metric_title, METRICS))]
  for name, category, row in table_rows(results):
    cells = (percent(row[m]) for m in METRICS)
    lines.append((one_line(name), one_line(category), *cells))
  texts = align(lines, num_text_columns=2)
  rule = "-" * max(map(len, texts))
  ruled, rest = [texts[0], rule], iter(texts[1:])
  for result in results.values():  # A category may be called "mean" too.
    ruled += [next(rest) for _ in result.categories]
    ruled += [rule, next(rest), rule]
  ruled += rest
  ruled += [
    f"{name}: {len(result.skipped)} of"
    f" {len(result.images) + len(result.skipped)} images left out, as they"
    " could not be read: see results.json"
    for name, result in results.items()
    if result.skipped
  ]
  for name, result in results.items():
    ruled += [f"{name}: {note}" for note in shorten_list(result.notes)]
  return "\n".join(ruled)


def results_json(
  results: Mapping[str, DatasetResult],
  provenance: Mapping[str, Any],
  skipped: Mapping[str, str],
  failed: Mapping[str, str],
) -> dict[str, Any]:
  """The content of results.json, see docs/results.md; NaN becomes None."""
  data = {}
  for name, result in results.items():
    labels = [image.label for image in result.images]
    data[name] = {
      "mean": result.mean,
      "categories": {
        category: {
          "metrics": row.metrics,
          "undefined": row.undefined,
          "image_threshold": row.image_threshold,
          "pixel_threshold": row.pixel_threshold,
        }
        for category, row in result.categories.items()
      },
      "identity": result.identity,
      "data_sha256": result.data_sha256,
      "notes": result.notes,
      "is_published": result.is_published,
      "num_images": len(labels),
      "num_anomalous_images": sum(labels),
      "seconds": result.seconds,
      "images_per_second": len(labels) / result.seconds,
      "peak_memory_bytes": result.peak_memory_bytes,
      "skipped_files": result.skipped,
    }
  return without_nan(
    {
      "schema_version": SCHEMA_VERSION,
      **provenance,
      "datasets": data,
      "means": group_means(results, domains()),
      "not_prepared": skipped,
      "failed": failed,
    }
  )


def write_results(
  workdir: AnyPath,
  results: Mapping[str, DatasetResult],
  provenance: Mapping[str, Any],
  skipped: Mapping[str, str],
  failed: Mapping[str, str],
) -> None:
  """Writes results.json, results.csv and scores.csv.

  In the files metrics are in [0, 1]; undefined ones are null or empty.

  Args:
    workdir: receives them.
    results: by data set.
    provenance: what was evaluated, for results.json.
    skipped, failed: other data sets, and why they have no results.
  """
  content = results_json(results, provenance, skipped, failed)
  write_file(workdir / "results.json", seal(content, indent=2))
  write_csv(
    workdir / "results.csv",
    ("dataset", "category", *METRICS),
    (
      (
        name,
        category,
        *("" if math.isnan(row[m]) else row[m] for m in METRICS),
      )
      for name, category, row in table_rows(results)
    ),
  )
  write_csv(
    workdir / "scores.csv",
    [field.name for field in dataclasses.fields(ImageResult)],
    (
      dataclasses.astuple(image)
      for result in results.values()
      for image in result.images
    ),
  )


def write_csv(
  path: AnyPath, header: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
  """Writes a table as a file of comma-separated values.

  Raises:
    InputError: it cannot be written.
  """
  file = io.StringIO()
  writer = csv.writer(file, lineterminator="\n")
  writer.writerow(header)
  writer.writerows(rows)
  write_file(path, file.getvalue())


def read_results(workdir: AnyPath) -> dict[str, Any]:
  """The content of a work directory's results.json.

  Raises:
    InputError: there is none, it is damaged or of another version.
  """
  path = workdir / "results.json"
  try:
    content = unseal(read_file(path))
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
      raise InputError(
        f"{path} has the schema version {version}, and this program reads"
        f" {SCHEMA_VERSION}: evaluate again, cops evaluate --workdir={workdir}"
      )
    _means(content)
    return content
  except OSError as error:
    raise InputError(
      f"{path} cannot be read: {error.strerror}. Evaluate first: cops evaluate"
      f" --workdir={workdir}"
    ) from error
  except InputError:
    raise
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise InputError(f"{path} is damaged: {error!r}") from error


def read_means(workdir: AnyPath) -> dict[str, dict[str, float]]:
  """Means by data set and by group from a work directory's results.json.

  Raises:
    InputError: see `read_results`.
  """
  return _means(read_results(workdir))


def _means(content):
  rows = {name: row["mean"] for name, row in content["datasets"].items()}
  rows |= content["means"]
  means = {
    name: {
      metric: math.nan if row.get(metric) is None else float(row[metric])
      for metric in METRICS
    }
    for name, row in rows.items()
  }
  for name, row in means.items():
    for metric, value in row.items():
      if not (math.isnan(value) or 0 <= value <= 1):
        raise ValueError(f"{metric} of {name} is {value}, not from 0 to 1")
  return means


def _find_unlike(contents):
  """Data sets of one name whose contents differ from run to run."""
  hashes = {}
  for content in contents:
    for name, row in content["datasets"].items():
      hashes.setdefault(name, set()).add(row["data_sha256"])
  return [name for name, found in hashes.items() if len(found) > 1]


def compare(workdirs: Sequence[AnyPath]) -> list[list[str]]:
  """Rows of a table of several runs, in percent.

  A data set's metric is a row: each run's value and, for each method, the mean
  and the sample standard deviation of its runs that have it. Runs on unlike
  data have neither.

  Raises:
    InputError: see `read_results`.
  """
  contents = [read_results(workdir) for workdir in workdirs]
  runs = [_means(content) for content in contents]
  unlike = _find_unlike(contents)
  if unlike:  # Groups' means are over them too.
    unlike += [name for run in runs for name in run if name.endswith(" mean")]
  methods = [  # Earlier versions had one, and did not name it.
    content.get("config", {}).get("method", "cops") for content in contents
  ]
  header = ["data set", "metric", *map(str, workdirs)]
  for method in dict.fromkeys(methods):
    name = f"{method} " if len(set(methods)) > 1 else ""
    header += [f"{name}mean", f"{name}std"]
  rows = [header]
  for name in dict.fromkeys(name for run in runs for name in run):
    for metric in METRICS:
      values = [run.get(name, {}).get(metric, math.nan) for run in runs]
      if all(map(math.isnan, values)):
        continue
      row = [name, metric_title(metric), *map(percent, values)]
      for method in dict.fromkeys(methods):
        own = zip(values, methods, strict=True)
        own = [value for value, other in own if other == method]
        row += _mean_and_deviation(own, name in unlike)
      rows.append(row)
  return rows


def _mean_and_deviation(values, are_unlike):
  if are_unlike:
    return ["unlike data", ""]
  defined = [value for value in values if not math.isnan(value)]
  if not defined:
    return ["n/a", "n/a"]
  deviation = np.std(defined, ddof=1) if len(defined) > 1 else math.nan
  return [
    percent(float(np.mean(defined))),
    "n/a" if math.isnan(deviation) else f"{100 * deviation:.2f}",
  ]
