"""Results of an evaluation, and means over categories and data sets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cops_jax.metrics import METRICS

Curve = Sequence[Sequence[float]]  # All x values, then all y values.


@dataclasses.dataclass(frozen=True)
class ImageResult:
  """Result of one image; a row of scores.csv."""

  dataset: str
  category: str
  path: str
  label: int
  image_score: float


@dataclasses.dataclass(frozen=True)
class CategoryResult:
  """Metrics of a category, computed over all its images and all their pixels.

  Attributes:
    metrics: value of each metric in [0, 1]; NaN if undefined.
    undefined: reason for each undefined metric.
    image_threshold: threshold of the largest image F1, or NaN.
    pixel_threshold: threshold of the largest pixel F1, or NaN.
    curves: curves by name, if defined: "image_roc", "image_pr", "pixel_roc",
      "pixel_pr" and "pixel_pro".
    num_masks: number of masks with anomalous pixels in the pixel metrics.
  """

  metrics: Mapping[str, float]
  undefined: Mapping[str, str] = dataclasses.field(default_factory=dict)
  image_threshold: float = math.nan
  pixel_threshold: float = math.nan
  curves: Mapping[str, Curve] = dataclasses.field(default_factory=dict)
  num_masks: int = 0


@dataclasses.dataclass(frozen=True)
class Picture:
  """An image shown in the report.

  Attributes:
    kind: "best", "worst" or "random".
    image: result of the image.
    tiles: pictures from `drawing.picture_tiles`.
    low, high: values of the anomaly map at the ends of the colour scale.
  """

  kind: str
  image: ImageResult
  tiles: Mapping[str, str]
  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class DatasetResult:
  """Results of a data set.

  Attributes:
    categories: results by category, sorted by name.
    images: results of the images, sorted by category and path.
    pictures: images to show in the report.
    skipped: reason for each file that could not be read, by path. Metrics do
      not include these files.
    identity: version or folder of the data.
    data_sha256: fingerprint of the data.
    notes: omissions, guesses and differences from the published data set.
    normal_images: paths of the reference images, if any, by category.
    is_published: True for a published data set with the known numbers of
      images. Only such results are compared with the papers.
    seconds: duration of the evaluation, including compilation.
    peak_memory_bytes: peak memory of the process at the end.
  """

  categories: Mapping[str, CategoryResult]
  images: Sequence[ImageResult]
  pictures: Sequence[Picture] = ()
  skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)
  identity: str = ""
  data_sha256: str = ""
  notes: Sequence[str] = ()
  normal_images: Mapping[str, Sequence[str]] = dataclasses.field(
    default_factory=dict
  )
  is_published: bool = False
  seconds: float = math.nan
  peak_memory_bytes: int = 0

  @property
  def mean(self) -> dict[str, float]:
    """Mean of each metric over the categories that define it."""
    return mean_metrics(row.metrics for row in self.categories.values())

  @property
  def num_masks(self) -> int:
    """Number of masks with anomalous pixels in the pixel metrics."""
    return sum(row.num_masks for row in self.categories.values())


@dataclasses.dataclass(frozen=True)
class Evaluated:
  """Outcome of an evaluation on several data sets.

  Attributes:
    results: results by data set, computed now or in an earlier evaluation.
    skipped: reason for each data set that is not prepared.
    failed: reason for each data set that could not be evaluated.
    provenance: prompts, backbone, config, versions and device.
  """

  results: Mapping[str, DatasetResult]
  skipped: Mapping[str, str]
  failed: Mapping[str, str]
  provenance: Mapping[str, Any]


def mean_metrics(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
  """Returns each metric's mean over the rows that define it, or NaN."""
  rows = list(rows)
  means = {}
  for name in METRICS:
    values = [row[name] for row in rows if not math.isnan(row[name])]
    means[name] = float(np.mean(values)) if values else math.nan
  return means


def group_means(
  results: Mapping[str, DatasetResult], domains: Mapping[str, str]
) -> dict[str, dict[str, float]]:
  """Returns means over groups of data sets, as in the papers' tables.

  Data sets have equal weights. A group of fewer than two data sets has no mean.

  Args:
    results: results by data set.
    domains: "industrial" or "medical" by data set. Data sets without a domain
      count in the overall mean only.
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
  """Returns nested values with None for each NaN, which JSON cannot store."""
  if isinstance(value, Mapping):
    return {name: without_nan(item) for name, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [without_nan(item) for item in value]
  if isinstance(value, float) and math.isnan(value):
    return None
  return value
