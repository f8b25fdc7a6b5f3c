"""Thresholds that turn scores into verdicts, and the file that stores them.

A run's thresholds.json can hold several: one for each combination of tiles,
reference images and prompts.
"""

from __future__ import annotations

import dataclasses
import logging
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

_logger = logging.getLogger(__name__)

_FILE = "thresholds.json"
# Regions smaller than this share of the map are not reported.
_LEAST_AREA = 1e-4
_LEAST_MARGIN = 1e-4
CONFIDENCE = 0.95  # Level of the confidence intervals.


@dataclasses.dataclass(frozen=True)
class Proportion:
  """A number of images out of a total, such as false alarms.

  Attributes:
    count: number of images counted.
    total: number of all images.
    low: lower end of the confidence interval of the true share.
    high: upper end of the interval.
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
  """Returns a proportion with its exact confidence interval at `CONFIDENCE`.

  The interval is Clopper and Pearson's (Biometrika 1934). The normal
  approximation is wrong for few images and for a count of 0. There must be at
  least one image.
  """
  from scipy import stats  # Slow to import.

  interval = stats.binomtest(count, total).proportion_ci(CONFIDENCE, "exact")
  return Proportion(count, total, float(interval.low), float(interval.high))


@dataclasses.dataclass(frozen=True)
class Thresholds:
  """The lowest image score and the lowest pixel value that are anomalous.

  Attributes:
    image: image threshold.
    pixel: pixel threshold.
    method: how the thresholds were chosen, in words.
    prompts_sha256: SHA-256 of the prompts that the thresholds were chosen for,
      from `prompts.hash_prompts`; an empty string fits any prompts.
    false_alarms: proportion of the normal images in calibration that reach the
      image threshold, or None if unknown.
    misses: proportion of the anomalous images in calibration that do not reach
      the image threshold, or None if unknown.
    tiles: tiles that images were scored with in calibration, see
      `tiles.normalize`.
    normal_images_sha256: SHA-256 of the reference images, see
      `AnomalyDetector`; empty without reference images.
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
    """Tiles and SHA-256 of the reference images, which scores depend on."""
    return self.tiles, self.normal_images_sha256

  @property
  def errors(self) -> dict[str, Proportion]:
    """Known proportions by name: "false alarms" and "misses"."""
    both = {"false alarms": self.false_alarms, "misses": self.misses}
    return {name: errors for name, errors in both.items() if errors}

  def __str__(self) -> str:
    return (
      f"image threshold {self.image:.4f}, pixel threshold {self.pixel:.4f}:"
      f" {self.method}"
    )


def to_json(rows: Iterable[Thresholds]) -> str:
  """Returns the content of a thresholds.json."""
  values = [dataclasses.asdict(row) for row in rows]
  return seal({"thresholds": values}, indent=2)


def why_unfit(rows: Sequence[Thresholds], way: tuple[str, str]) -> str:
  """Returns why none of the thresholds apply to a way of scoring images.

  The text is empty if some of them apply, or if there are none. `way` is
  described in `Thresholds.way`.
  """
  chosen = [row.way for row in rows]
  if not chosen or way in chosen:
    return ""
  *were, now = _describe([*chosen, way])
  tiles, images = way
  option = f" --tiles={tiles}" if tiles else ""
  option += " --normal_images=..." if images else ""
  return (
    f"the thresholds were chosen {' and '.join(were)}, but images are scored"
    f" {now}; add thresholds with `cops calibrate{option}`"
  )


def _describe(ways):
  """Returns ways in words, without reference images if no way has any."""
  has_images = any(images for _, images in ways)
  texts = []
  for tiles, images in ways:
    text = f"with tiles {tiles!r}" if tiles else "without tiles"
    if has_images:
      name = f" {images[:8]}" if images else ""
      text += f", {'with' if images else 'without'} reference images{name}"
    texts.append(text)
  return texts


def read_thresholds(workdir: str | os.PathLike) -> list[Thresholds]:
  """Returns all thresholds of a run.

  Args:
    workdir: run directory, or folder of pretrained prompts.

  Returns:
    The thresholds in the order of the file; empty if none were chosen.

  Raises:
    InputError: if the file is damaged.
  """
  path = to_path(workdir) / _FILE
  try:
    return [_from_values(row) for row in unseal(read_file(path))["thresholds"]]
  except FileNotFoundError:
    return []
  except (OSError, ValueError, TypeError, KeyError) as error:
    raise InputError(
      f"{path} is damaged ({error}). Delete it and choose new thresholds with"
      " `cops calibrate`."
    ) from error


def read_fitting(
  workdir: str | os.PathLike, prompts_sha256: str
) -> list[Thresholds]:
  """Returns a run's thresholds that were chosen for the given prompts.

  If there are only thresholds for other prompts, a warning reports it. See
  `read_thresholds` for the folder, and `prompts.hash_prompts` for the hash.
  """
  rows = read_thresholds(workdir)
  fitting = [row for row in rows if row.prompts_sha256 in ("", prompts_sha256)]
  if rows and not fitting:
    _logger.warning(
      "the thresholds in %s do not apply: they were chosen for other prompts;"
      " choose new ones with `cops calibrate`",
      workdir,
    )
  return fitting


def _from_values(values):
  for name in ("false_alarms", "misses"):
    if values[name] is not None:
      values[name] = Proportion(**values[name])
  chosen = Thresholds(**values)
  # A threshold that no image reaches can be slightly above 1.
  if not all(0 <= x <= 1 + _LEAST_MARGIN for x in (chosen.image, chosen.pixel)):
    raise ValueError(
      f"thresholds are {chosen.image} and {chosen.pixel}, expected 0 to 1"
    )
  normalize(chosen.tiles)
  return chosen


def put(
  chosen: Thresholds, rows: Iterable[Thresholds], path: AnyPath
) -> tuple[list[Thresholds], str]:
  """Adds thresholds to earlier ones, by the rule of `write_thresholds`.

  Args:
    chosen: new thresholds.
    rows: earlier thresholds.
    path: file for all of them, which the sentence names.

  Returns:
    All thresholds, and a sentence about those that were kept and replaced.
  """
  fits = ("", chosen.prompts_sha256)
  kept, replaced = [], []
  for row in rows:
    is_same = row.way == chosen.way and row.prompts_sha256 in fits
    (replaced if is_same else kept).append(row)
  own = [row.way for row in kept if row.prompts_sha256 in fits]
  *earlier, _ = _describe([*own, chosen.way])
  earlier += ["for other prompts"] * (len(own) < len(kept))
  return [*kept, chosen], "".join(
    [
      f"written to {path}",
      *(f", next to those {name}" for name in dict.fromkeys(earlier)),
      *(f"\nreplaced: {row}" for row in replaced),
    ]
  )


def write_thresholds(workdir: str | os.PathLike, chosen: Thresholds) -> str:
  """Adds thresholds to a run's thresholds.json.

  Args:
    workdir: run directory.
    chosen: new thresholds. They replace earlier thresholds for the same tiles,
      reference images and prompts.

  Returns:
    A sentence about the thresholds that were kept and replaced.

  Raises:
    InputError: if the file is damaged or cannot be written.
  """
  path = to_path(workdir) / _FILE
  rows, sentence = put(chosen, read_thresholds(workdir), path)
  write_file(path, to_json(rows))
  return sentence


def of_false_positive_rate(
  normal_scores: Float[np.ndarray, "n"], rate: float
) -> float:
  """Returns a threshold that at most a given share of normal scores reaches.

  The threshold is half-way between two scores, or slightly above the highest
  score, because the last bits of a score depend on its batch.

  Args:
    normal_scores: scores of normal images or pixels, at least one.
    rate: share of the scores that can reach the threshold, in [0, 1).
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
  """Returns the threshold with the largest balanced accuracy.

  It is half-way between two scores. The threshold with the largest F1 would
  call nearly all images anomalous if most of them are. Labels are True for
  anomalous images. If images of a kind are missing, the result is NaN.
  """
  best = metrics.count_images(scores, labels).balanced_threshold()
  below = scores[scores < best]
  if not len(below):
    return max(best - _LEAST_MARGIN, 0.0)
  return (best + float(below.max())) / 2


def find_boxes(
  anomaly_map: Float[np.ndarray, "h w"], threshold: float
) -> list[tuple[int, int, int, int]]:
  """Returns boxes around the regions at or above a threshold.

  Pixels that touch at a corner are connected. Regions smaller than a
  ten-thousandth of the map are ignored.

  Args:
    anomaly_map: anomaly map, (h, w).
    threshold: pixel threshold.

  Returns:
    A tuple (left, top, right, bottom) in pixels for each region, largest region
    first. Right and bottom are exclusive.
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
