"""Thresholds that turn scores into verdicts: chosen, kept with a run, used."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

import numpy as np

from cops_jax import metrics
from cops_jax.errors import InputError
from cops_jax.files import read_file, seal, unseal, write_file
from cops_jax.images.tiles import normalize
from cops_jax.metrics.proportions import Proportion
from cops_jax.paths import AnyPath, to_path
from cops_jax.typing import Bool, Float

_FILE = "thresholds.json"
# Regions smaller than this share of the map are not reported.
_LEAST_AREA = 1e-4
_LEAST_MARGIN = 1e-4


@dataclasses.dataclass(frozen=True)
class Thresholds:
  """Scores from which on images and pixels count as anomalous.

  Attributes:
    image: for image scores.
    pixel: for anomaly maps.
    method: how they were chosen, in words.
    prompts_sha256: of the prompts that they were chosen for, see
      `prompts.hash_prompts`; "" for any.
    false_alarms: normal images that reach the image threshold, of those that it
      was chosen by; None where it is not known.
    misses: anomalous images that do not, likewise.
    tiles: that the images were looked at by, see `tiles.normalize`.
  """

  image: float
  pixel: float
  method: str
  prompts_sha256: str = ""
  false_alarms: Proportion | None = None
  misses: Proportion | None = None
  tiles: str = ""

  @property
  def errors(self) -> dict[str, Proportion]:
    """The false alarms and misses by these names, if they are known."""
    both = {"false alarms": self.false_alarms, "misses": self.misses}
    return {name: errors for name, errors in both.items() if errors}

  def to_json(self) -> str:
    """The thresholds as text."""
    return seal(dataclasses.asdict(self), indent=2)

  def why_unfit(self, tiles: str) -> str:
    """Why there are no verdicts on images looked at by these tiles.

    Args:
      tiles: what `tiles.normalize` gives.

    Returns:
      A sentence; "" if the thresholds fit.
    """
    if self.tiles == tiles:
      return ""
    were, now = (
      f"with tiles {name!r}" if name else "without tiles"
      for name in (self.tiles, tiles)
    )
    option = f" --tiles={tiles}" if tiles else ""
    return (
      f"the thresholds were chosen {were}, and images are looked at {now};"
      f" choose again: cops calibrate{option}"
    )


def full_heat(thresholds: Thresholds | None) -> float:
  """The score that pictures show in full colour: twice the pixel threshold."""
  return 2 * thresholds.pixel if thresholds else 1.0


def read_thresholds(workdir: str | os.PathLike) -> Thresholds | None:
  """A run's thresholds; None if none were chosen.

  Raises:
    InputError: the file is damaged.
  """
  path = to_path(workdir) / _FILE
  try:
    values = unseal(read_file(path))
    image, pixel = (float(values[name]) for name in ("image", "pixel"))
    # One that nothing may reach is a little above 1.
    if not all(0 <= value <= 1 + _LEAST_MARGIN for value in (image, pixel)):
      raise ValueError(f"thresholds are from 0 to 1, not {image} and {pixel}")
    if unknown := values.keys() - {
      f.name for f in dataclasses.fields(Thresholds)
    }:
      raise ValueError(f"unknown fields: {', '.join(sorted(unknown))}")
    return Thresholds(
      image,
      pixel,
      str(values["method"]),
      str(values.get("prompts_sha256", "")),
      # Earlier versions did not keep these.
      *(_proportion(values.get(name)) for name in ("false_alarms", "misses")),
      normalize(str(values.get("tiles", ""))),
    )
  except FileNotFoundError:
    return None
  except (OSError, ValueError, TypeError, KeyError) as error:
    raise InputError(
      f"{path} is damaged ({error}). Delete it, and choose thresholds again"
      " with cops calibrate."
    ) from error


def _proportion(values: Any) -> Proportion | None:
  return None if values is None else Proportion(**values)


def write_thresholds(
  workdir: str | os.PathLike, thresholds: Thresholds
) -> AnyPath:
  """Keeps thresholds with a run; gives the file's path.

  Raises:
    InputError: it cannot be written.
  """
  path = to_path(workdir) / _FILE
  write_file(path, thresholds.to_json())
  return path


def of_false_positive_rate(
  normal_scores: Float[np.ndarray, "n"], rate: float
) -> float:
  """A threshold that no more than a share of normal scores reaches.

  It lies half-way between two scores, or a little above the highest: the last
  bits of a score depend on the images beside it.

  Args:
    normal_scores: at least one, of normal images or pixels.
    rate: the share, in [0, 1).

  Raises:
    ValueError: there are no scores.
  """
  if not len(normal_scores):
    raise ValueError("there are no normal scores")
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
  """A threshold of the largest balanced accuracy, half-way between two scores.

  The largest F1 would take nearly all images for anomalous where most of those
  that it is chosen by are: it does not count what is normal and called so.

  Args:
    scores: of images.
    labels: whether they are anomalous.

  Returns:
    NaN unless there are both kinds of images.
  """
  best = metrics.count_images(scores, labels).balanced_threshold()
  below = scores[scores < best]
  if not len(below):
    return max(best - _LEAST_MARGIN, 0.0)
  return (best + float(below.max())) / 2


def find_boxes(
  anomaly_map: Float[np.ndarray, "h w"], threshold: float
) -> list[tuple[int, int, int, int]]:
  """Boxes around the map's regions at or above a threshold, largest first.

  Regions are 8-connected; those of less than a ten-thousandth of the map are
  left out.

  Returns:
    (left, top, right, bottom) in pixels, the last two exclusive.
  """
  from scipy import ndimage  # Takes long to import.

  labels, _ = ndimage.label(anomaly_map >= threshold, np.ones((3, 3)))
  areas = np.bincount(labels.ravel())
  boxes = []
  for label, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
    if areas[label] >= _LEAST_AREA * anomaly_map.size:
      box = (columns.start, rows.start, columns.stop, rows.stop)
      boxes.append((int(areas[label]), tuple(map(int, box))))
  return [box for _, box in sorted(boxes, key=lambda row: (-row[0], row[1]))]
