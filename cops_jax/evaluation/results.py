"""What an evaluation found: values, their means, and their form in a file."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cops_jax.errors import InputError
from cops_jax.files import seal, unseal
from cops_jax.metrics import METRICS

Curve = tuple[Sequence[float], Sequence[float]]


@dataclasses.dataclass(frozen=True)
class ImageResult:
  """One evaluated image, a row of scores.csv."""

  dataset: str
  category: str
  path: str
  label: int
  image_score: float


@dataclasses.dataclass(frozen=True)
class CategoryResult:
  """A category's metrics, its images and pixels pooled.

  Attributes:
    metrics: in [0, 1]; NaN where undefined.
    undefined: why, by metric.
    image_threshold, pixel_threshold: the scores of the largest F1; NaN where
      that is undefined.
    curves: x and y by name, of those that are defined: "image_roc",
      "image_pr", "pixel_roc", "pixel_pr" and "pixel_pro".
  """

  metrics: Mapping[str, float]
  undefined: Mapping[str, str] = dataclasses.field(default_factory=dict)
  image_threshold: float = math.nan
  pixel_threshold: float = math.nan
  curves: Mapping[str, Curve] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Picture:
  """One image for the report.

  Attributes:
    kind: "best", "worst" or "random".
    image: what was evaluated.
    tiles: see `drawing.picture_tiles`.
    low, high: the ends of the colour scale.
  """

  kind: str
  image: ImageResult
  tiles: Mapping[str, bytes]
  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class DatasetResult:
  """A data set's results.

  Attributes:
    categories: by name, sorted.
    images: sorted by category and path.
    pictures: some images.
    skipped: files that could not be read, left out of everything, and why.
    identity: tells the data from others of that name: a version or a folder.
    data_sha256: of what tells these data's contents from others.
    notes: on the data: what was left out or guessed, and how they differ from
      the published ones.
    is_published: whether they are one of the thirteen published data sets, with
      the known numbers of images: others do not stand beside the paper's.
    seconds: that the evaluation took, compilation included.
    peak_memory_bytes: of the process until then.
  """

  categories: Mapping[str, CategoryResult]
  images: Sequence[ImageResult]
  pictures: Sequence[Picture] = ()
  skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)
  identity: str = ""
  data_sha256: str = ""
  notes: Sequence[str] = ()
  is_published: bool = False
  seconds: float = math.nan
  peak_memory_bytes: int = 0

  @property
  def mean(self) -> dict[str, float]:
    """Mean over the categories where a metric is defined, equally weighted."""
    return mean_metrics(row.metrics for row in self.categories.values())


@dataclasses.dataclass(frozen=True)
class Evaluated:
  """The outcome for each data set.

  Attributes:
    results: of those that were evaluated, now or before.
    skipped: those that are not prepared, and why.
    failed: those that could not be evaluated, and why.
    provenance: what was evaluated, with what, on what.
  """

  results: Mapping[str, DatasetResult]
  skipped: Mapping[str, str]
  failed: Mapping[str, str]
  provenance: Mapping[str, Any]


def mean_metrics(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
  """Mean of each metric over the rows where it is defined; else NaN."""
  rows = list(rows)
  means = {}
  for name in METRICS:
    values = [row[name] for row in rows if not math.isnan(row[name])]
    means[name] = float(np.mean(values)) if values else math.nan
  return means


def group_means(
  results: Mapping[str, DatasetResult], domains: Mapping[str, str]
) -> dict[str, dict[str, float]]:
  """Means over data sets, equally weighted, as the paper's tables have them.

  Args:
    results: by data set.
    domains: "industrial" or "medical" by data set; others may be absent.

  Returns:
    By "industrial mean", "medical mean" and "overall mean"; groups of fewer
    than two data sets are left out.
  """
  groups = {
    "industrial mean": [n for n in results if domains.get(n) == "industrial"],
    "medical mean": [n for n in results if domains.get(n) == "medical"],
    "overall mean": list(results),
  }
  return {
    group: mean_metrics(results[name].mean for name in names)
    for group, names in groups.items()
    if len(names) > 1
  }


def without_nan(value: Any) -> Any:
  """A nest of dicts and sequences with None for NaN, which JSON lacks."""
  if isinstance(value, Mapping):
    return {name: without_nan(item) for name, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [without_nan(item) for item in value]
  if isinstance(value, float) and math.isnan(value):
    return None
  return value


def _nan(value):
  return math.nan if value is None else value


def to_json(result: DatasetResult, key: Mapping[str, Any]) -> str:
  """A result as text.

  Args:
    result: to write.
    key: all that it depends on, of JSON's types.
  """
  values = dataclasses.asdict(result)
  for picture in values["pictures"]:
    picture["tiles"] = {
      name: base64.b64encode(tile).decode()
      for name, tile in picture["tiles"].items()
    }
  return seal({"key": key, "result": without_nan(values)})


def from_json(
  text: str | bytes, key: Mapping[str, Any]
) -> DatasetResult | None:
  """The inverse of `to_json`; None if the result has another key.

  Raises:
    InputError: the text is damaged.
  """
  try:
    stored = unseal(text)
    if stored["key"] != json.loads(json.dumps(key)):
      return None
    values = stored["result"]
    categories = {
      name: CategoryResult(
        metrics={metric: _nan(row["metrics"][metric]) for metric in METRICS},
        undefined=row["undefined"],
        image_threshold=_nan(row["image_threshold"]),
        pixel_threshold=_nan(row["pixel_threshold"]),
        curves={name: tuple(curve) for name, curve in row["curves"].items()},
      )
      for name, row in values["categories"].items()
    }
    pictures = [
      Picture(
        kind=row["kind"],
        image=ImageResult(**row["image"]),
        tiles={
          name: base64.b64decode(tile) for name, tile in row["tiles"].items()
        },
        low=row["low"],
        high=row["high"],
      )
      for row in values["pictures"]
    ]
    return DatasetResult(
      categories=categories,
      images=[ImageResult(**row) for row in values["images"]],
      pictures=pictures,
      skipped=values["skipped"],
      identity=values["identity"],
      data_sha256=values["data_sha256"],
      notes=values["notes"],
      is_published=values["is_published"],
      seconds=_nan(values["seconds"]),
      peak_memory_bytes=values["peak_memory_bytes"],
    )
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise InputError(f"{type(error).__name__}: {error}") from error
