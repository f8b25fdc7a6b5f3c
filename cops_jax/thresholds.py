"""Thresholds that turn scores into verdicts, kept with a run.

A file holds those of several tilings, normal images and prompts.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Sequence

import numpy as np

from cops_jax import metrics
from cops_jax.errors import InputError
from cops_jax.files import read_file, seal, unseal, write_file
from cops_jax.images.tiles import normalize
from cops_jax.paths import AnyPath, to_path
from cops_jax.typing import Bool, Float

_FILE = "thresholds.json"
# Regions smaller than this share of the map are not reported.
_LEAST_AREA = 1e-4
_LEAST_MARGIN = 1e-4
CONFIDENCE = 0.95  # Of intervals.


@dataclasses.dataclass(frozen=True)
class Proportion:
  """How many of some images were counted, such as false alarms.

  Attributes:
    count: of those that were.
    total: of all.
    low, high: confidence interval of the share among images of their kind.
  """

  count: int
  total: int
  low: float
  high: float

  def __str__(self) -> str:
    return (
      f"{self.count} of {self.total}, {self.count / self.total:.1%}"
      f" ({CONFIDENCE:.0%} interval {self.low:.1%} to {self.high:.1%})"
    )


def estimate(count: int, total: int) -> Proportion:
  """Returns a proportion with its exact interval at `CONFIDENCE`.

  The normal approximation would be wrong for few images and for none counted
  (Clopper and Pearson, Biometrika 1934).

  Args:
    count: from 0 to total.
    total: at least 1.
  """
  from scipy import stats  # Slow to import.

  interval = stats.binomtest(count, total).proportion_ci(CONFIDENCE, "exact")
  return Proportion(count, total, float(interval.low), float(interval.high))


@dataclasses.dataclass(frozen=True)
class Thresholds:
  """The lowest scores of images and pixels that count as anomalous.

  Attributes:
    image: for image scores.
    pixel: for anomaly maps.
    method: how they were chosen, in words.
    prompts_sha256: from `prompts.hash_prompts` of the prompts that they were
      chosen for; an empty string fits any prompts.
    false_alarms: normal images that reach the image threshold, among the images
      that it was chosen by; None if unknown.
    misses: anomalous images that do not, likewise.
    tiles: tiles of these images, see `tiles.normalize`.
    normal_images_sha256: from `AnomalyDetector` of the normal images that these
      were compared with.
  """

  image: float
  pixel: float
  method: str
  prompts_sha256: str = ""
  false_alarms: Proportion | None = None
  misses: Proportion | None = None
  tiles: str = ""
  normal_images_sha256: str = ""

  @property
  def way(self) -> tuple[str, str]:
    """How these images were looked at: tiles and SHA-256 of normal images."""
    return self.tiles, self.normal_images_sha256

  @property
  def errors(self) -> dict[str, Proportion]:
    """The known ones of "false alarms" and "misses", by these names."""
    both = {"false alarms": self.false_alarms, "misses": self.misses}
    return {name: errors for name, errors in both.items() if errors}

  def __str__(self) -> str:
    return (
      f"image threshold {self.image:.4f}, pixel threshold {self.pixel:.4f}:"
      f" {self.method}"
    )


def to_json(rows: Iterable[Thresholds]) -> str:
  """Returns thresholds as the text of their file."""
  values = [dataclasses.asdict(row) for row in rows]
  return seal({"thresholds": values}, indent=2)


def why_unfit(rows: Sequence[Thresholds], way: tuple[str, str]) -> str:
  """Returns why no thresholds fit a way to look at images; "" if one does.

  Args:
    rows: thresholds; without any the result is "".
    way: see `Thresholds.way`.
  """
  chosen = [row.way for row in rows]
  if not chosen or way in chosen:
    return ""
  *were, now = _describe([*chosen, way])
  tiles, images = way
  option = f" --tiles={tiles}" if tiles else ""
  option += " --normal_images=..." if images else ""
  return (
    f"the thresholds were chosen {' and '.join(were)}, and images are looked at"
    f" {now}; choose others beside them: cops calibrate{option}"
  )


def _describe(ways):
  """Returns ways in words; normal images count only if some way has them."""
  has_images = any(images for _, images in ways)
  texts = []
  for tiles, images in ways:
    text = f"with tiles {tiles!r}" if tiles else "without tiles"
    if has_images:
      name = f" {images[:8]}" if images else ""
      text += f", {'with' if images else 'without'} normal images{name}"
    texts.append(text)
  return texts


def read_thresholds(workdir: str | os.PathLike) -> list[Thresholds]:
  """Returns all of a run's thresholds; empty if none were chosen.

  Raises:
    InputError: the file is damaged.
  """
  path = to_path(workdir) / _FILE
  try:
    return [_from_values(row) for row in unseal(read_file(path))["thresholds"]]
  except FileNotFoundError:
    return []
  except (OSError, ValueError, TypeError, KeyError) as error:
    raise InputError(
      f"{path} is damaged ({error}). Delete it, and choose thresholds again"
      " with cops calibrate."
    ) from error


def _from_values(values):
  for name in ("false_alarms", "misses"):
    if values[name] is not None:
      values[name] = Proportion(**values[name])
  found = Thresholds(**values)
  # A threshold that no image may reach is a little above 1.
  if not all(0 <= x <= 1 + _LEAST_MARGIN for x in (found.image, found.pixel)):
    raise ValueError(
      f"thresholds are from 0 to 1, not {found.image} and {found.pixel}"
    )
  normalize(found.tiles)
  return found


def put(
  chosen: Thresholds, rows: Iterable[Thresholds], path: AnyPath
) -> tuple[list[Thresholds], str]:
  """Adds thresholds to those of other ways and prompts.

  Args:
    chosen: the new ones. They replace those of the same way and prompts.
    rows: thresholds that were chosen before.
    path: of the file that they are written to.

  Returns:
    All thresholds, and a sentence about what was kept and replaced.
  """
  fits = ("", chosen.prompts_sha256)
  kept, replaced = [], []
  for row in rows:
    is_same = row.way == chosen.way and row.prompts_sha256 in fits
    (replaced if is_same else kept).append(row)
  own = [row.way for row in kept if row.prompts_sha256 in fits]
  *others, _ = _describe([*own, chosen.way])
  others += ["of other prompts"] * (len(own) < len(kept))
  return [*kept, chosen], "".join(
    [
      f"kept in {path}",
      *(f", beside those {name}" for name in dict.fromkeys(others)),
      *(f"\nreplaced: {row}" for row in replaced),
    ]
  )


def write_thresholds(workdir: str | os.PathLike, chosen: Thresholds) -> str:
  """Keeps thresholds with a run; returns a sentence, see `put`.

  Raises:
    InputError: the file is damaged or cannot be written.
  """
  path = to_path(workdir) / _FILE
  rows, sentence = put(chosen, read_thresholds(workdir), path)
  write_file(path, to_json(rows))
  return sentence


def of_false_positive_rate(
  normal_scores: Float[np.ndarray, "n"], rate: float
) -> float:
  """Returns a threshold that at most a share of the normal scores reaches.

  It lies half-way between two scores, or a little above the highest, because
  the last bits of a score depend on its batch.

  Args:
    normal_scores: at least one, of normal images or pixels.
    rate: the share, in [0, 1).
  """
  ordered = np.sort(normal_scores)[::-1]
  # 0.29 * 100 is a little less than 29.
  allowance = math.floor(rate * len(ordered) + 1e-9)
  highest = float(ordered[allowance])
  allowed = normal_scores[normal_scores > highest]
  if not len(allowed):
    return highest + _LEAST_MARGIN
  return (highest + float(allowed.min())) / 2


def of_balanced_accuracy(
  scores: Float[np.ndarray, "n"], labels: Bool[np.ndarray, "n"]
) -> float:
  """Returns a threshold of the largest balanced accuracy, between two scores.

  It is NaN unless there are both kinds of images. The largest F1 would call
  nearly all images anomalous where most of them are.

  Args:
    scores: of images.
    labels: whether they are anomalous.
  """
  best = metrics.count_images(scores, labels).balanced_threshold()
  below = scores[scores < best]
  if not len(below):
    return max(best - _LEAST_MARGIN, 0.0)
  return (best + float(below.max())) / 2


def find_boxes(
  anomaly_map: Float[np.ndarray, "h w"], threshold: float
) -> list[tuple[int, int, int, int]]:
  """Returns boxes around regions at or above a threshold, largest first.

  Regions are 8-connected. Regions below a ten-thousandth of the map's area are
  ignored. A box is (left, top, right, bottom) in pixels, the last two
  exclusive.
  """
  regions = anomaly_map >= threshold
  if not regions.any():
    return []
  from scipy import ndimage  # Slow to import.

  labels, _ = ndimage.label(regions, np.ones((3, 3)))
  boxes = []
  for label, place in enumerate(ndimage.find_objects(labels), 1):
    area = np.count_nonzero(labels[place] == label)
    if area >= _LEAST_AREA * anomaly_map.size:
      rows, columns = place
      box = (columns.start, rows.start, columns.stop, rows.stop)
      boxes.append((int(area), tuple(map(int, box))))
  return [box for _, box in sorted(boxes, key=lambda row: (-row[0], row[1]))]
