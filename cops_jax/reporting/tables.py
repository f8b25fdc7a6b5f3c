"""An evaluation's results as a table to read and as files."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cops_jax.errors import InputError
from cops_jax.evaluation.results import (
  DatasetResult,
  Evaluated,
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


def percent(value: float, form: str = ".1f") -> str:
  """Returns a metric for tables; `n/a` if it is undefined."""
  return "n/a" if math.isnan(value) else f"{100 * value:{form}}"


def domains() -> dict[str, str]:
  """Returns the domain of each published data set, by name."""
  from cops_jax.datasets.specifications import SPECIFICATIONS

  return {name: row.domain for name, row in SPECIFICATIONS.items()}


def format_table(results: Mapping[str, DatasetResult]) -> str:
  """Returns a table to read, in percent; `n/a` if a metric is undefined."""

  def line(name, category, row):
    cells = (percent(row[metric]) for metric in METRICS)
    return one_line(name), one_line(category), *cells

  lines = [("data set", "category", *METRICS.values())]
  rules = [1]  # Where a rule stands above a line.
  for name, result in results.items():
    for category, row in result.categories.items():
      lines.append(line(name, category, row.metrics))
    rules += [len(lines), len(lines) + 1]
    lines.append(line(name, "mean", result.mean))
  for group, means in group_means(results, domains()).items():
    lines.append(line(group, "mean", means))
  texts = align(lines, num_text_columns=2)
  for place in reversed(rules):
    texts.insert(place, "-" * max(map(len, texts)))
  for name, result in results.items():
    if result.skipped:
      number = len(result.images) + len(result.skipped)
      texts.append(
        f"{name}: {len(result.skipped)} of {number} images left out, as they"
        " could not be read: see results.json"
      )
    if result.num_masks:
      texts.append(
        f"{name}: pixel metrics are over {result.num_masks} masks of"
        f" {sum(image.label for image in result.images)} anomalous images"
      )
    for notes in (describe_normal_images(result), result.notes):
      texts += [f"{name}: {note}" for note in shorten_list(notes)]
  return "\n".join(texts)


def describe_normal_images(result: DatasetResult) -> list[str]:
  """Returns which normal images each category was compared with, in lines."""
  return [
    f"{category} was compared with normal images ({len(paths)}):"
    f" {', '.join(paths)}"
    for category, paths in result.normal_images.items()
  ]


def results_json(evaluated: Evaluated) -> dict[str, Any]:
  """Returns the content of results.json, see docs/results.md; None for NaN."""
  data = {}
  for name, result in evaluated.results.items():
    data[name] = {
      "mean": result.mean,
      "categories": {
        category: {
          "metrics": row.metrics,
          "undefined": row.undefined,
          "image_threshold": row.image_threshold,
          "pixel_threshold": row.pixel_threshold,
          "num_masks": row.num_masks,
        }
        for category, row in result.categories.items()
      },
      "identity": result.identity,
      "data_sha256": result.data_sha256,
      "notes": result.notes,
      "normal_images": result.normal_images,
      "is_published": result.is_published,
      "num_images": len(result.images),
      "num_anomalous_images": sum(image.label for image in result.images),
      "num_masks": result.num_masks,
      "seconds": result.seconds,
      "images_per_second": len(result.images) / result.seconds,
      "peak_memory_bytes": result.peak_memory_bytes,
      "skipped_files": result.skipped,
    }
  return without_nan(
    {
      "schema_version": SCHEMA_VERSION,
      **evaluated.provenance,
      "datasets": data,
      "means": group_means(evaluated.results, domains()),
      "not_prepared": evaluated.skipped,
      "failed": evaluated.failed,
    }
  )


def write_results(workdir: AnyPath, evaluated: Evaluated) -> None:
  """Writes results.json and scores.csv into a work directory.

  Raises:
    InputError: they cannot be written.
  """
  content = results_json(evaluated)
  write_file(workdir / "results.json", seal(content, indent=2))
  write_csv(
    workdir / "scores.csv",
    [field.name for field in dataclasses.fields(ImageResult)],
    (
      dataclasses.astuple(image)
      for result in evaluated.results.values()
      for image in result.images
    ),
  )


def write_csv(
  path: AnyPath, header: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
  """Writes a table as a file of comma-separated values; NaN becomes empty.

  Raises:
    InputError: it cannot be written.
  """
  file = io.StringIO()
  writer = csv.writer(file, lineterminator="\n")
  writer.writerow(header)
  for row in rows:
    writer.writerow(["" if value != value else value for value in row])
  write_file(path, file.getvalue())


def read_results(workdir: AnyPath) -> dict[str, Any]:
  """Returns the content of a work directory's results.json.

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
    for name, means in means_of(content).items():
      for metric, value in means.items():
        if not (math.isnan(value) or 0 <= value <= 1):
          raise ValueError(f"{metric} of {name} is {value}, not from 0 to 1")
    return content
  except OSError as error:
    raise InputError(
      f"{path} cannot be read: {error.strerror}. Evaluate first: cops evaluate"
      f" --workdir={workdir}"
    ) from error
  except InputError:
    raise
  except (
    *(ValueError, KeyError, TypeError),
    *(AttributeError, OverflowError),
  ) as error:
    raise InputError(f"{path} is damaged: {error!r}") from error


def means_of(content: Mapping[str, Any]) -> dict[str, dict[str, float]]:
  """Returns each data set's metrics from the content of results.json.

  Metrics that are undefined, or that an earlier version did not have, are NaN.
  """
  return {
    name: {
      metric: math.nan if value is None else float(value)
      for metric in METRICS
      for value in [row["mean"].get(metric)]
    }
    for name, row in content["datasets"].items()
  }
