"""Values that an evaluation returns, and their means."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cops_jax.metrics import METRICS

Curve = Sequence[Sequence[float]]  # x and y.


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
  """A category's metrics, with all its images and all its pixels pooled.

  Attributes:
    metrics: in [0, 1]; NaN where undefined.
    undefined: the reason, by undefined metric.
    image_threshold, pixel_threshold: the scores of the largest F1; NaN where
      that is undefined.
    curves: x and y of the defined ones among "image_roc", "image_pr",
      "pixel_roc", "pixel_pr" and "pixel_pro".
    num_masks: masks with anomalous pixels that pixel metrics are over.
  """

  metrics: Mapping[str, float]
  undefined: Mapping[str, str] = dataclasses.field(default_factory=dict)
  image_threshold: float = math.nan
  pixel_threshold: float = math.nan
  curves: Mapping[str, Curve] = dataclasses.field(default_factory=dict)
  num_masks: int = 0


@dataclasses.dataclass(frozen=True)
class Picture:
  """One image in the report.

  Attributes:
    kind: "best", "worst" or "random".
    image: its result.
    tiles: see `drawing.picture_tiles`.
    low, high: the ends of the colour scale.
  """

  kind: str
  image: ImageResult
  tiles: Mapping[str, str]
  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class DatasetResult:
  """A data set's results.

  Attributes:
    categories: by name, sorted.
    images: sorted by category and path.
    pictures: some of the images.
    skipped: unreadable files, which count nowhere, and the reasons.
    identity: version or folder of the data.
    data_sha256: fingerprint of the data's contents.
    notes: on the data: omissions, guesses and differences from the published
      ones.
    normal_images: paths of the images that each category's were compared
      with, by category; empty for none.
    is_published: whether the data are one of the published data sets
      with the known numbers of images. Only these are compared with the paper.
    seconds: duration of the evaluation, compilation included.
    peak_memory_bytes: of the process until then.
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
    """Mean over the categories where a metric is defined, equally weighted."""
    return mean_metrics(row.metrics for row in self.categories.values())

  @property
  def num_masks(self) -> int:
    """Masks with anomalous pixels that pixel metrics are over."""
    return sum(row.num_masks for row in self.categories.values())


@dataclasses.dataclass(frozen=True)
class Evaluated:
  """The outcome for each data set.

  Attributes:
    results: of the data sets that were evaluated, now or before.
    skipped: the reasons, by data set that is not prepared.
    failed: the reasons, by data set that could not be evaluated.
    provenance: prompts, backbone, config, versions and device.
  """

  results: Mapping[str, DatasetResult]
  skipped: Mapping[str, str]
  failed: Mapping[str, str]
  provenance: Mapping[str, Any]


def mean_metrics(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
  """Returns each metric's mean over the rows that define it, else NaN."""
  rows = list(rows)
  means = {}
  for name in METRICS:
    values = [row[name] for row in rows if not math.isnan(row[name])]
    means[name] = float(np.mean(values)) if values else math.nan
  return means


def group_means(
  results: Mapping[str, DatasetResult], domains: Mapping[str, str]
) -> dict[str, dict[str, float]]:
  """Returns means over data sets, equally weighted, as in the paper's tables.

  A group of fewer than two data sets has no mean.

  Args:
    results: by data set.
    domains: "industrial" or "medical" by data set; others may be absent.
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
  """Returns nested dicts and sequences with None for NaN, which JSON lacks."""
  if isinstance(value, Mapping):
    return {name: without_nan(item) for name, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [without_nan(item) for item in value]
  if isinstance(value, float) and math.isnan(value):
    return None
  return value
