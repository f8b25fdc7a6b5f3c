"""Results of an evaluation as a text table and as files."""

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

# Increase when a field of results.json changes its meaning or is removed.
SCHEMA_VERSION = 1


def percent(value: float, form: str = ".1f") -> str:
  """Returns a metric as text in percent, or `n/a` if it is undefined."""
  return "n/a" if math.isnan(value) else f"{100 * value:{form}}"


def domains() -> dict[str, str]:
  """Returns "industrial" or "medical" for each published data set, by name."""
  from cops_jax.datasets.specifications import SPECIFICATIONS

  return {name: row.domain for name, row in SPECIFICATIONS.items()}


def format_table(results: Mapping[str, DatasetResult]) -> str:
  """Returns a text table in percent; undefined metrics are `n/a`."""

  def line(name, category, row):
    cells = (percent(row[metric]) for metric in METRICS)
    return one_line(name), one_line(category), *cells

  lines = [("data set", "category", *METRICS.values())]
  rules = [1]  # Indices of lines that get a rule above them.
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
        f"{name}: files skipped as unreadable: {len(result.skipped)} of"
        f" {number}; see results.json"
      )
    if result.num_masks:
      texts.append(
        f"{name}: pixel metrics include the masks of {result.num_masks} of"
        f" {sum(image.label for image in result.images)} anomalous images"
      )
    for notes in (describe_normal_images(result), result.notes):
      texts += [f"{name}: {note}" for note in shorten_list(notes)]
  return "\n".join(texts)


def describe_normal_images(result: DatasetResult) -> list[str]:
  """Returns a line for each category with its reference images, if any."""
  return [
    f"reference images of {category} ({len(paths)}): {', '.join(paths)}"
    for category, paths in result.normal_images.items()
  ]


def results_json(evaluated: Evaluated) -> dict[str, Any]:
  """Returns the content of results.json, as docs/results.md describes it."""
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
  """Writes results.json and scores.csv into a run directory.

  Raises:
    InputError: if a file cannot be written.
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
  """Writes a table as comma-separated values; NaN becomes an empty cell.

  Raises:
    InputError: if the file cannot be written.
  """
  file = io.StringIO()
  writer = csv.writer(file, lineterminator="\n")
  writer.writerow(header)
  for row in rows:
    writer.writerow(["" if value != value else value for value in row])
  write_file(path, file.getvalue())


def read_results(workdir: AnyPath) -> dict[str, Any]:
  """Returns the content of results.json in a run directory.

  Raises:
    InputError: if the file is missing, damaged or of another schema version.
  """
  path = workdir / "results.json"
  try:
    content = unseal(read_file(path))
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
      raise InputError(
        f"{path} has the schema version {version}, but this program reads"
        f" {SCHEMA_VERSION}. Run `cops evaluate --workdir={workdir}` again."
      )
    for name, means in means_of(content).items():
      for metric, value in means.items():
        if not (math.isnan(value) or 0 <= value <= 1):
          raise ValueError(f"{metric} of {name} is {value}, not in [0, 1]")
    return content
  except OSError as error:
    raise InputError(
      f"{path} cannot be read: {error.strerror}. Run `cops evaluate"
      f" --workdir={workdir}` first."
    ) from error
  except InputError:
    raise
  except (
    *(ValueError, KeyError, TypeError),
    *(AttributeError, OverflowError),
  ) as error:
    raise InputError(
      f"{path} is damaged ({error!r}). Run `cops evaluate --workdir={workdir}`"
      " again."
    ) from error


def means_of(content: Mapping[str, Any]) -> dict[str, dict[str, float]]:
  """Returns the mean metrics of each data set in the content of results.json.

  Metrics that are undefined or that an older version did not store are NaN.
  """
  return {
    name: {
      metric: math.nan if value is None else float(value)
      for metric in METRICS
      for value in [row["mean"].get(metric)]
    }
    for name, row in content["datasets"].items()
  }
