"""Metrics and curves from the numbers of images or pixels at each score."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from cops_jax.typing import Bool, Float, Integer

METRICS = {
  "image_auroc": "image AUROC",
  "image_ap": "image AP",
  "image_f1_max": "image F1-max",
  "pixel_auroc": "pixel AUROC",
  "pixel_ap": "pixel AP",
  "pixel_f1_max": "pixel F1-max",
  "pixel_aupro": "pixel AUPRO",
  "pixel_aupro_200": "pixel AUPRO-200",
}

# AUPRO is integrated up to this false-positive rate.
AUPRO_LIMIT = 0.3
# Number of equidistant thresholds of AUPRO-200.
NUM_THRESHOLDS = 200
_NUM_CURVE_POINTS = 300

Curve = tuple[Float[np.ndarray, "p"], Float[np.ndarray, "p"]]


@dataclasses.dataclass(frozen=True)
class Counts:
  """Numbers of images or pixels (items) at each distinct score.

  Without normal or without anomalous items, metrics and thresholds are NaN and
  curves are empty.

  Attributes:
    scores: distinct scores, ascending.
    normal: number of normal items with each score.
    anomalous: number of anomalous items with each score.
    overlap: sum of 1 / (area of the pixel's region) over the anomalous pixels
      with each score, times any constant; None for images.
    floor: score below which each score is the lowest of a bin, in float32.
  """

  scores: Float[np.ndarray, "t"]
  normal: Integer[np.ndarray, "t"]
  anomalous: Integer[np.ndarray, "t"]
  overlap: Float[np.ndarray, "t"] | None = None
  floor: float = -np.inf

  def compute(self) -> dict[str, float]:
    """Returns the metrics of `METRICS` for images or for pixels, in [0, 1]."""
    level = "image" if self.overlap is None else "pixel"
    values = {
      f"{level}_auroc": self.auroc(),
      f"{level}_ap": self.average_precision(),
      f"{level}_f1_max": self.f1_max(),
    }
    if self.overlap is None:
      return values
    return values | {
      "pixel_aupro": self.aupro(),
      "pixel_aupro_200": self.aupro_200(),
    }

  def auroc(self) -> float:
    """Returns the area under the ROC curve, in which ties count half.

    The area is the probability that an anomalous item scores above a normal
    one (Hanley and McNeil, Radiology 1982). scikit-learn's `roc_auc_score`
    returns the same.
    """
    return _area(*_rates(self.normal, self.anomalous), limit=1.0)

  def average_precision(self) -> float:
    """Returns the average precision, a step-wise sum over thresholds t.

    Papers in this field and scikit-learn's `average_precision_score` compute
    `sum_t (recall_t - recall_{t-1}) precision_t`, not the trapezoidal area.
    """
    recall, precision = self._precision_recall()
    if not len(recall):
      return float("nan")
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))

  def f1_max(self) -> float:
    """Returns the largest F1 over all thresholds.

    Each score is a threshold; items that reach it are called anomalous. Papers
    in this field report this as F1-max (Jeong et al., WinCLIP, CVPR 2023).
    """
    f1 = self._f1()
    return float(f1.max()) if len(f1) else float("nan")

  def aupro(self) -> float:
    """Returns the area under the per-region overlap, up to 30% false positives.

    The per-region overlap is the share of a region's pixels that are found,
    averaged over all regions. The curve plots it against the false-positive
    rate of normal pixels. Its trapezoidal area, with linear interpolation at
    0.3, is divided by 0.3 (Bergmann et al., The MVTec Anomaly Detection
    Dataset, IJCV 2021).
    """
    rates = _rates(self.normal, self.overlap)
    return _area(*rates, limit=AUPRO_LIMIT) / AUPRO_LIMIT

  def aupro_200(self) -> float:
    """Returns AUPRO-200: AUPRO as AnomalyCLIP's authors compute it.

    The thresholds are low + i (high - low) / 200 for i from 0 to 199, between
    the lowest and the highest score. Pixels that score above a threshold are
    found. Points of `aupro`'s curve with a false-positive rate below 0.3 are
    kept, and their rates are min-max scaled to [0, 1]. The result is the
    trapezoidal area, or 0 if all rates are equal.
    """
    if not self.normal.any() or not self.overlap.any():
      return float("nan")
    low, high = float(self.scores[0]), float(self.scores[-1])
    steps = np.arange(NUM_THRESHOLDS) / NUM_THRESHOLDS
    thresholds = low + steps * (high - low)
    # Scores below the floor are float32, so thresholds there must be float32.
    rounded = thresholds.astype(np.float32)
    thresholds = np.where(thresholds < self.floor, rounded, thresholds)
    places = np.searchsorted(self.scores, thresholds, side="right")
    rates, overlaps = (
      np.append(np.cumsum(values[::-1])[::-1], 0)[places] / values.sum()
      for values in (self.normal, self.overlap)
    )
    is_kept = rates < AUPRO_LIMIT
    if not is_kept.any() or np.ptp(rates[is_kept]) == 0:
      return 0.0
    x = rates[is_kept][::-1]
    x = (x - x[0]) / np.ptp(x)
    return _area(x, overlaps[is_kept][::-1], limit=1.0)

  def curves(self) -> dict[str, Curve]:
    """Returns curves to draw, as x and y from the highest threshold on.

    "roc" is false-positive and true-positive rate, "pr" is recall and
    precision, and "pro", for pixels only, is false-positive rate and per-region
    overlap. A curve has at most 300 points.
    """
    found = {
      "roc": _rates(self.normal, self.anomalous),
      "pr": self._precision_recall(),
    }
    if self.overlap is not None:
      found["pro"] = _rates(self.normal, self.overlap)
    return {name: _thin(*curve) for name, curve in found.items()}

  def best_threshold(self) -> float:
    """Returns the threshold with the largest F1, the highest if several do."""
    return self._highest_of(self._f1())

  def balanced_threshold(self) -> float:
    """Returns the threshold with the largest balanced accuracy.

    Balanced accuracy is the mean of two shares: of the normal items below the
    threshold, and of the anomalous items that reach it. It does not depend on
    the ratio of normal to anomalous items, and is largest where Youden's J is
    (Cancer 1950). If several scores qualify, the highest is returned.
    """
    false, true = _descending(self.normal, self.anomalous)
    if not len(true):
      return float("nan")
    # Integers keep ties exact.
    return self._highest_of(true * false[-1] - false * true[-1])

  def _highest_of(self, values):
    """Returns the score with the largest value, the highest if several do.

    The first of `values` belongs to the highest score.
    """
    return float(self.scores[-1 - values.argmax()]) if len(values) else np.nan

  def _precision_recall(self):
    false, true = _descending(self.normal, self.anomalous)
    if not len(true):
      return true, true
    return true / true[-1], true / (true + false)

  def _f1(self):
    false, true = _descending(self.normal, self.anomalous)
    return 2 * true / (true + false + true[-1]) if len(true) else true


def count_images(
  scores: Float[np.ndarray, "n"], labels: Bool[np.ndarray, "n"]
) -> Counts:
  """Counts images by score; labels are True for anomalous images.

  Raises:
    ValueError: if a score is NaN.
  """
  if np.isnan(scores).any():
    raise ValueError("an image score is NaN")
  return count_scores(scores, labels)


def count_scores(
  scores: Float[np.ndarray, "n"],
  is_anomalous: Bool[np.ndarray, "n"],
  overlap: Float[np.ndarray, "n"] | Integer[np.ndarray, "n"] | None = None,
) -> Counts:
  """Counts images or pixels by score; see `Counts`."""
  distinct, positions = np.unique(scores, return_inverse=True)
  length = len(distinct)
  if overlap is not None:
    overlap = np.bincount(positions, overlap, length).astype(float)
  return Counts(
    distinct,
    np.bincount(positions[~is_anomalous], minlength=length),
    np.bincount(positions[is_anomalous], minlength=length),
    overlap,
  )


def undefined_reasons(
  values: Mapping[str, float], images: Counts, pixels: Counts
) -> dict[str, str]:
  """Returns a reason for each metric that is NaN, such as "no masks".

  Args:
    values: metrics of a category.
    images, pixels: counts of the category's images, and of pixels with a mask.
  """
  reasons = {
    name: f"no {'normal' if counts.anomalous.any() else 'anomalous'} {name}s"
    for name, counts in (("image", images), ("pixel", pixels))
  }
  if not len(pixels.scores):
    reasons["pixel"] = "no masks"
  return {
    name: reasons[name.split("_")[0]]
    for name, value in values.items()
    if np.isnan(value)
  }


def _descending(normal, anomalous):
  """Returns false and true positives at each threshold, the highest first."""
  if not normal.any() or not anomalous.any():
    return np.zeros((2, 0))
  return np.cumsum(normal[::-1]), np.cumsum(anomalous[::-1])


def _rates(normal, anomalous):
  """Returns false-positive and true-positive rates from (0, 0) to (1, 1)."""
  false, true = _descending(normal, anomalous)
  if not len(true):
    return false, true
  return np.append(0, false) / false[-1], np.append(0, true) / true[-1]


def _area(x, y, limit):
  """Returns the area under a polyline of ascending x, up to x = limit."""
  if not len(x):
    return float("nan")
  end = np.searchsorted(x, limit, side="right")
  x, y = (
    np.append(values[:end], np.interp(limit, x, values)) for values in (x, y)
  )
  return float(np.sum(np.diff(x) * (y[1:] + y[:-1])) / 2)


def _thin(x, y):
  """Returns at most 300 points of a curve, evenly spread along its length."""
  if len(x) <= _NUM_CURVE_POINTS:
    return x, y
  path = np.append(0, np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y))))
  targets = np.linspace(0, path[-1], _NUM_CURVE_POINTS - 1)
  kept = np.append(np.searchsorted(path, targets), len(x) - 1)
  kept = np.unique(np.minimum(kept, len(x) - 1))
  return x[kept], y[kept]
