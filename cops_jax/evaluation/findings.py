"""Scored images and counted pixels of each process, merged into results."""

from __future__ import annotations

import collections
import dataclasses
import math
import random
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from cops_jax import metrics, scoring
from cops_jax.errors import InputError
from cops_jax.evaluation.results import CategoryResult, ImageResult
from cops_jax.runtime.processes import gather_objects


class Scored(NamedTuple):
  """A scored image, its index in the data set, and the range of its map."""

  image: ImageResult
  index: int
  low: float
  high: float


@dataclasses.dataclass
class Findings:
  """Scored images and counted pixels of one process, or of all.

  Attributes:
    mode: one of `metrics.PIXEL_METRICS_MODES`.
    images: scored images in any order.
    pixels: pixel metrics of each category.
    num_masks: number of masks with anomalous pixels of each category.
    skipped: reason for each unreadable image, by path.
    notes: guesses made when an image and its mask were read, by path.
  """

  mode: str
  images: list[Scored] = dataclasses.field(default_factory=list)
  pixels: dict[str, metrics.PixelMetrics | metrics.ExactPixelMetrics] = (
    dataclasses.field(default_factory=dict)
  )
  num_masks: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  skipped: dict[str, str] = dataclasses.field(default_factory=dict)
  notes: dict[str, str] = dataclasses.field(default_factory=dict)

  def add(self, row: Mapping[str, Any], dataset: str) -> ImageResult:
    """Adds an image and returns its result.

    Raises:
      InputError: if its score or its anomaly map is not finite.
    """
    path, category = str(row["path"]), str(row["category"])
    score, anomaly_map = float(row["image_score"]), row["anomaly_map"]
    if not (np.isfinite(score) and np.isfinite(anomaly_map).all()):
      raise InputError(
        f"the score of {path} in data set {dataset!r} is not finite, because"
        " the prompts or the backbone's weights are damaged. Replace them."
      )
    image = ImageResult(dataset, category, path, int(row["label"]), score)
    ends = float(anomaly_map.min()), float(anomaly_map.max())
    self.images.append(Scored(image, int(row["index"]), *ends))
    if row["notes"]:
      self.notes[path] = str(row["notes"])
    if row["has_mask"]:
      if category not in self.pixels:
        self.pixels[category] = metrics.PIXEL_METRICS_MODES[self.mode]()
      mask = row["mask"].astype(bool)
      self.pixels[category].add(anomaly_map, mask)
      self.num_masks[category] += bool(mask.any())
    return image

  def gather(self) -> Findings:
    """Returns the findings of all processes together, in every process."""
    whole = Findings(self.mode)
    for part in gather_objects(self):
      whole.images += part.images
      whole.num_masks += part.num_masks
      for category, state in part.pixels.items():
        if category in whole.pixels:
          state = whole.pixels[category].merge(state)
        whole.pixels[category] = state
      whole.skipped |= part.skipped
      whole.notes |= part.notes
    return whole

  def categories(self) -> dict[str, CategoryResult]:
    """Returns the results of each category, sorted by name."""
    images = collections.defaultdict(list)
    for scored in self.images:
      images[scored.image.category].append(scored.image)
    return {
      name: _category_result(
        images[name],
        self.pixels.get(name, metrics.PixelMetrics()).count(),
        self.num_masks[name],
      )
      for name in sorted(images)
    }

  def ranges(self) -> dict[str, tuple[float, float]]:
    """Returns the lowest and highest value of each category's anomaly maps."""
    found = {}
    for image, _, low, high in self.images:
      old = found.get(image.category, (low, high))
      found[image.category] = min(low, old[0]), max(high, old[1])
    return found

  def choose(
    self, categories: Mapping[str, CategoryResult], number: int
  ) -> list[tuple[str, Scored]]:
    """Returns the images to show, `number` of each kind, with their kinds.

    The best images score furthest on the correct side of their category's
    threshold, the worst furthest on the wrong side. The choice does not depend
    on the order of the images.
    """
    rows = sorted(
      self.images, key=lambda row: (row.image.category, row.image.path)
    )
    ranked = sorted(rows, key=lambda row: -_margin(row.image, categories))
    number = min(number, len(rows))
    kinds = {
      "best": ranked[:number],
      "worst": ranked[::-1][:number],
      "random": random.Random(0).sample(rows, number),
    }
    return [(kind, row) for kind, rows in kinds.items() for row in rows]


def _margin(image, categories):
  threshold = categories[image.category].image_threshold
  threshold = 0.5 if math.isnan(threshold) else threshold
  distance = image.image_score - threshold
  return distance if image.label == scoring.ANOMALY else -distance


def _category_result(images, pixels, num_masks):
  scores = np.array([image.image_score for image in images])
  labels = np.array([image.label == scoring.ANOMALY for image in images])
  counts = metrics.count_images(scores, labels)
  values = counts.compute() | pixels.compute()
  curves = {
    f"{level}_{name}": [np.round(axis, 5).tolist() for axis in curve]
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
    curves=curves,
    num_masks=num_masks,
  )
