"""Metrics and curves from counts of images or pixels at each distinct score."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from cops_jax.typing import Bool, Float, Integer

# Titles by name.
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
# Equidistant thresholds of AUPRO as some papers report it.
NUM_THRESHOLDS = 200
_NUM_CURVE_POINTS = 300

Curve = tuple[Float[np.ndarray, "p"], Float[np.ndarray, "p"]]


@dataclasses.dataclass(frozen=True)
class Counts:
  """Images or pixels at each distinct score, by ascending score.

  Without normal or without anomalous items, metrics and thresholds are NaN and
  curves empty.

  Attributes:
    scores: the distinct scores.
    normal, anomalous: how many items have each score.
    overlap: of pixels, the sum over anomalous ones of each score of one divided
      by the area of the pixel's region, in any unit; None of images.
    floor: scores below it are the lowest scores of float32 bins.
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
    """Area under the ROC curve, ties counting half.

    The probability that an anomalous item scores above a normal one (Hanley and
    McNeil, Radiology 1982); scikit-learn's `roc_auc_score`.
    """
    return _area(*_rates(self.normal, self.anomalous), limit=1.0)

  def average_precision(self) -> float:
    """Average precision, the step-wise sum over thresholds.

    `sum_t (recall_t - recall_{t-1}) precision_t`, as papers in this field
    report it; scikit-learn's `average_precision_score`, not the trapezoidal
    area.
    """
    recall, precision = self._precision_recall()
    if not len(recall):
      return float("nan")
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))

  def f1_max(self) -> float:
    """The largest F1 over all thresholds that are scores.

    Items that score at least as high are called anomalous. Papers in this field
    report it as F1-max (Jeong et al., WinCLIP, CVPR 2023).
    """
    f1 = self._f1()
    return float(f1.max()) if len(f1) else float("nan")

  def aupro(self) -> float:
    """Area under the per-region overlap curve up to 30 % false positives.

    The curve has the mean over all regions of the share of a region's pixels
    that are found, against the false-positive rate of all normal pixels. Its
    area by the trapezoid, with linear interpolation at 0.3, is divided by 0.3
    (Bergmann et al., The MVTec Anomaly Detection Dataset, IJCV 2021).
    """
    rates = _rates(self.normal, self.overlap)
    return _area(*rates, limit=AUPRO_LIMIT) / AUPRO_LIMIT

  def aupro_200(self) -> float:
    """AUPRO as AnomalyCLIP's authors compute it, from few thresholds.

    Takes the points of `aupro`'s curve at thresholds low + i (high - low) /
    200, i from 0 to 199, where pixels that score above one are found, and of
    these the ones with a false-positive rate below 0.3. Their rates are min-max
    scaled to [0, 1], and the area is that of the trapezoid; 0 if all rates are
    the same.
    """
    if not self.normal.any() or not self.overlap.any():
      return float("nan")
    low, high = float(self.scores[0]), float(self.scores[-1])
    steps = np.arange(NUM_THRESHOLDS) / NUM_THRESHOLDS
    thresholds = low + steps * (high - low)
    # Among bins a threshold is a float32, as scores are.
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
    """Returns curves to draw, from the highest threshold to the lowest.

    Each has at most 300 points. "roc" is false-positive and true-positive rate,
    "pr" recall and precision, of pixels "pro" false-positive rate and
    per-region overlap.
    """
    found = {
      "roc": _rates(self.normal, self.anomalous),
      "pr": self._precision_recall(),
    }
    if self.overlap is not None:
      found["pro"] = _rates(self.normal, self.overlap)
    return {name: _thin(*curve) for name, curve in found.items()}

  def best_threshold(self) -> float:
    """Returns the highest score that as a threshold has the F1-max."""
    return self._highest_of(self._f1())

  def balanced_threshold(self) -> float:
    """Returns the highest score of the largest balanced accuracy.

    Balanced accuracy is the mean of two shares: of the normal items below the
    threshold, and of the anomalous ones that reach it (its maximum is where
    Youden's J is largest, Cancer 1950). It is the same for any ratio of the two
    kinds.
    """
    false, true = _descending(self.normal, self.anomalous)
    if not len(true):
      return float("nan")
    # In whole numbers, so that equal ones are equal.
    return self._highest_of(true * false[-1] - false * true[-1])

  def _highest_of(self, values):
    """The first score of the largest value, the highest score's first."""
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
  """Counts images by score; labels say whether they are anomalous.

  Raises:
    ValueError: a score is NaN.
  """
  if np.isnan(scores).any():
    raise ValueError("an image score is NaN")
  return count_scores(scores, labels)


def count_scores(
  scores: Float[np.ndarray, "n"],
  is_anomalous: Bool[np.ndarray, "n"],
  overlap: Float[np.ndarray, "n"] | Integer[np.ndarray, "n"] | None = None,
) -> Counts:
  """Counts items; see `Counts`."""
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
    values: the category's metrics.
    images: counts of the category's images.
    pixels: counts of the pixels of its images with masks.
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
  """Normal and anomalous items found by each threshold, the highest first."""
  if not normal.any() or not anomalous.any():
    return np.zeros((2, 0))
  return np.cumsum(normal[::-1]), np.cumsum(anomalous[::-1])


def _rates(normal, anomalous):
  """False and true-positive rates, from (0, 0) to (1, 1)."""
  false, true = _descending(normal, anomalous)
  if not len(true):
    return false, true
  return np.append(0, false) / false[-1], np.append(0, true) / true[-1]


def _area(x, y, limit):
  """Area under the polygon through points of ascending x, up to x = limit."""
  if not len(x):
    return float("nan")
  end = np.searchsorted(x, limit, side="right")
  x, y = (
    np.append(values[:end], np.interp(limit, x, values)) for values in (x, y)
  )
  return float(np.sum(np.diff(x) * (y[1:] + y[:-1])) / 2)


def _thin(x, y):
  """Keeps few points, each close to the dropped ones after it."""
  if len(x) <= _NUM_CURVE_POINTS:
    return x, y
  path = np.append(0, np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y))))
  targets = np.linspace(0, path[-1], _NUM_CURVE_POINTS - 1)
  kept = np.append(np.searchsorted(path, targets), len(x) - 1)
  kept = np.unique(np.minimum(kept, len(x) - 1))
  return x[kept], y[kept]
