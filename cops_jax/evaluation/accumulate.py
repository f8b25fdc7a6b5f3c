"""What an evaluation finds, image by image and process by process."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cops_jax import metrics, scoring
from cops_jax.errors import InputError
from cops_jax.evaluation.results import CategoryResult, ImageResult, Picture
from cops_jax.runtime.processes import gather_objects


@dataclasses.dataclass
class Findings:
  """What a process has found so far.

  Attributes:
    mode: of the pixel metrics.
    images: scored.
    indices, example_ids: of these images.
    pixels: pixel metrics by category.
    ranges: lowest and highest value of the maps by category.
    skipped: paths and reasons.
  """

  mode: str
  images: list[ImageResult] = dataclasses.field(default_factory=list)
  indices: list[int] = dataclasses.field(default_factory=list)
  example_ids: list[int] = dataclasses.field(default_factory=list)
  pixels: dict[str, metrics.PixelMetrics | metrics.ExactPixelMetrics] = (
    dataclasses.field(default_factory=dict)
  )
  ranges: dict[str, tuple[float, float]] = dataclasses.field(
    default_factory=dict
  )
  skipped: dict[str, str] = dataclasses.field(default_factory=dict)

  def add(self, row: Mapping[str, Any], dataset: str) -> ImageResult:
    """Counts an image.

    Raises:
      InputError: its score is NaN.
    """
    image, anomaly_map = image_result(row, dataset), row["anomaly_map"]
    self.images.append(image)
    self.indices.append(int(row["index"]))
    self.example_ids.append(int(row["example_id"]))
    self._widen(
      image.category, float(anomaly_map.min()), float(anomaly_map.max())
    )
    if row["has_mask"]:
      if image.category not in self.pixels:
        state = metrics.PIXEL_METRICS_MODES[self.mode]()
        self.pixels[image.category] = state
      self.pixels[image.category].add(anomaly_map, row["mask"].astype(bool))
    return image

  def _widen(self, category, low, high):
    old_low, old_high = self.ranges.get(category, (low, high))
    self.ranges[category] = min(low, old_low), max(high, old_high)

  def gather(self) -> Findings:
    """What all processes have found, the same in each of them."""
    whole = Findings(self.mode)
    for part in gather_objects(self):
      whole.images += part.images
      whole.indices += part.indices
      whole.example_ids += part.example_ids
      for category, state in part.pixels.items():
        if category in whole.pixels:
          state = whole.pixels[category].merge(state)
        whole.pixels[category] = state
      for category, (low, high) in part.ranges.items():
        whole._widen(category, low, high)
      whole.skipped |= part.skipped
    return whole

  def categories(self) -> dict[str, CategoryResult]:
    """Results by category, sorted."""
    names = sorted({image.category for image in self.images})
    return {
      name: _category_result(
        [image for image in self.images if image.category == name],
        self.pixels.get(name, metrics.PixelMetrics()).count(),
      )
      for name in names
    }

  def choose_pictures(
    self, categories: Mapping[str, CategoryResult], number: int
  ) -> list[tuple[str, int]]:
    """Kinds and indices of the images to show, `number` of each kind.

    The best and the worst by how far a score is on the right side of its
    category's threshold, as a share of what there is on its side: one of each
    category before a second of any. The random ones by id. Neither order nor
    batches change them.
    """

    def margin(image):
      threshold = categories[image.category].image_threshold
      threshold = 0.5 if math.isnan(threshold) else threshold
      side = 1 if image.label == scoring.ANOMALY else -1
      distance = image.image_score - threshold
      return (
        side
        * distance
        / max(1 - threshold if distance > 0 else threshold, 1e-12)
      )

    rows = [
      (margin(image), example_id, index, image.category)
      for image, example_id, index in zip(
        self.images, self.example_ids, self.indices, strict=True
      )
    ]
    rows.sort(key=lambda row: (-row[0], row[1]))
    kinds = {
      "best": _one_of_each(rows)[:number],
      "worst": _one_of_each(rows[::-1])[:number],
      "random": sorted(rows, key=lambda row: row[1])[:number],
    }
    return [(kind, row[2]) for kind in kinds for row in kinds[kind]]


def _one_of_each(rows):
  """The first row of each category, then the second of each, and so on."""
  seen = collections.Counter()
  ranks = []
  for row in rows:
    ranks.append(seen[row[-1]])
    seen[row[-1]] += 1
  return [rows[place] for place in np.argsort(ranks, kind="stable")]


def image_result(row: Mapping[str, Any], dataset: str) -> ImageResult:
  """The result of one row of a batch and its outputs.

  Raises:
    InputError: its score or its map holds a NaN.
  """
  path = str(row["path"])
  if not (
    np.isfinite(row["image_score"]) and np.isfinite(row["anomaly_map"]).all()
  ):
    raise InputError(
      f"the score of {path} in data set {dataset!r} is not a number: the"
      " checkpoint or the CLIP weights are damaged"
    )
  return ImageResult(
    dataset,
    str(row["category"]),
    path,
    int(row["label"]),
    float(row["image_score"]),
  )


def gather_pictures(
  pictures: Sequence[tuple[int, Picture]],
) -> list[Picture]:
  """The pictures of all processes, by the numbers that they come with."""
  rows = [row for part in gather_objects(list(pictures)) for row in part]
  return [picture for _, picture in sorted(rows, key=lambda row: row[0])]


def _category_result(images, pixels):
  scores = np.array([image.image_score for image in images])
  labels = np.array([image.label == scoring.ANOMALY for image in images])
  counts = metrics.count_images(scores, labels)
  values = counts.compute() | pixels.compute()
  curves = {
    f"{level}_{name}": curve
    for level, found in (
      ("image", counts.curves()),
      ("pixel", pixels.curves()),
    )
    for name, curve in found.items()
    if len(curve[0])
  }
  return CategoryResult(
    values,
    undefined=metrics.undefined_reasons(values, counts, pixels),
    image_threshold=counts.best_threshold(),
    pixel_threshold=pixels.best_threshold(),
    curves={
      name: tuple(np.round(axis, 5).tolist() for axis in curve)
      for name, curve in curves.items()
    },
  )
