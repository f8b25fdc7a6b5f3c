"""Metrics and curves from counts of items at each distinct score.

One formula serves images, binned pixels and exact pixels. Throughout, `normal`
and `anomalous` say how many items have each score, by ascending score. Where
either kind is absent, metrics are NaN and curves empty.
"""

from __future__ import annotations

import numpy as np

from cops_jax.typing import Float, Integer

# AUPRO is integrated up to this false-positive rate.
AUPRO_LIMIT = 0.3
# Of AUPRO at equidistant thresholds, as some papers report it.
NUM_THRESHOLDS = 200
_NUM_CURVE_POINTS = 300


def auroc(
  normal: Integer[np.ndarray, "t"], anomalous: Integer[np.ndarray, "t"]
) -> float:
  """Area under the ROC curve, ties counting half.

  The probability that an anomalous item scores above a normal one (Hanley and
  McNeil, Radiology 1982); scikit-learn's `roc_auc_score`.
  """
  return _area(*_rates(normal, anomalous), limit=1.0)


def average_precision(
  normal: Integer[np.ndarray, "t"], anomalous: Integer[np.ndarray, "t"]
) -> float:
  """Average precision, the step-wise sum over thresholds.

  `sum_t (recall_t - recall_{t-1}) precision_t`, as papers in this field report
  it; scikit-learn's `average_precision_score`, not the trapezoidal area.
  """
  recall, precision = _precision_recall(normal, anomalous)
  if not len(recall):
    return float("nan")
  return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def f1_max(
  normal: Integer[np.ndarray, "t"], anomalous: Integer[np.ndarray, "t"]
) -> float:
  """The largest F1 over all thresholds that are scores.

  What scores at least as high is called anomalous. Papers in this field report
  it as F1-max (Jeong et al., WinCLIP, CVPR 2023).
  """
  f1 = _f1(normal, anomalous)
  return float(f1.max()) if len(f1) else float("nan")


def aupro(
  normal: Integer[np.ndarray, "t"], overlap: Float[np.ndarray, "t"]
) -> float:
  """Area under the per-region overlap curve up to 30 % false positives.

  The curve has the mean over all regions of the share of a region's pixels that
  are found, against the false-positive rate of all normal pixels. Its area by
  the trapezoid, with linear interpolation at 0.3, is divided by 0.3 (Bergmann
  et al., The MVTec Anomaly Detection Dataset, IJCV 2021).

  Args:
    normal: see the module.
    overlap: the sum, over anomalous pixels of each score, of one divided by the
      area of the pixel's region, in any unit.
  """
  return _area(*_rates(normal, overlap), limit=AUPRO_LIMIT) / AUPRO_LIMIT


def aupro_at_thresholds(
  normal: Integer[np.ndarray, "t"],
  overlap: Float[np.ndarray, "t"],
  places: Integer[np.ndarray, "m"],
) -> float:
  """AUPRO as AnomalyCLIP's authors compute it, from few thresholds.

  Of the points of `aupro`'s curve at thresholds low + i (high - low) / 200, i
  from 0 to 199, where a pixel is found that scores above one, those with a
  false-positive rate below 0.3; their rates are min-max scaled to [0, 1], and
  the area is that of the trapezoid. 0 where these rates are all the same.

  Args:
    normal, overlap: see `aupro`.
    places: for each threshold how many of the `t` scores are not above it.
  """
  if not normal.any() or not overlap.any():
    return float("nan")
  rates, overlaps = (
    np.append(np.cumsum(values[::-1])[::-1], 0)[places] / values.sum()
    for values in (normal, overlap)
  )
  is_kept = rates < AUPRO_LIMIT
  if not is_kept.any() or np.ptp(rates[is_kept]) == 0:
    return 0.0
  x = rates[is_kept][::-1]
  x = (x - x[0]) / np.ptp(x)
  return _area(x, overlaps[is_kept][::-1], limit=1.0)


def best_position(
  normal: Integer[np.ndarray, "t"], anomalous: Integer[np.ndarray, "t"]
) -> int | None:
  """Where the highest score of largest F1 is; None if undefined."""
  f1 = _f1(normal, anomalous)
  return len(f1) - 1 - int(f1.argmax()) if len(f1) else None


def roc_curve(
  normal: Integer[np.ndarray, "t"],
  anomalous: Integer[np.ndarray, "t"] | Float[np.ndarray, "t"],
) -> tuple[Float[np.ndarray, "p"], Float[np.ndarray, "p"]]:
  """False and true-positive rate, at most 300 points from (0, 0) to (1, 1).

  With region overlap for `anomalous`, the curve that `aupro` integrates.
  """
  return _thin(*_rates(normal, anomalous))


def precision_recall_curve(
  normal: Integer[np.ndarray, "t"], anomalous: Integer[np.ndarray, "t"]
) -> tuple[Float[np.ndarray, "p"], Float[np.ndarray, "p"]]:
  """Recall and precision, at most 300 points from the highest threshold on."""
  return _thin(*_precision_recall(normal, anomalous))


def _descending(normal, anomalous):
  """Normal and anomalous items found by each threshold, the highest first."""
  if not normal.any() or not anomalous.any():
    return np.zeros((2, 0))
  return np.cumsum(normal[::-1]), np.cumsum(anomalous[::-1])


def _rates(normal, anomalous):
  false, true = _descending(normal, anomalous)
  if not len(true):
    return false, true
  return np.append(0, false) / false[-1], np.append(0, true) / true[-1]


def _precision_recall(normal, anomalous):
  false, true = _descending(normal, anomalous)
  return (true / true[-1], true / (true + false)) if len(true) else (true, true)


def _f1(normal, anomalous):
  false, true = _descending(normal, anomalous)
  return 2 * true / (true + false + true[-1]) if len(true) else true


def _area(x, y, limit):
  """Under the polygon through points of ascending x, up to x = limit."""
  if not len(x):
    return float("nan")
  end = np.searchsorted(x, limit, side="right")
  x, y = (
    np.append(values[:end], np.interp(limit, x, values)) for values in (x, y)
  )
  return float(np.sum(np.diff(x) * (y[1:] + y[:-1])) / 2)


def _thin(x, y):
  """Points so that what is left out is close to the kept point before it."""
  if len(x) <= _NUM_CURVE_POINTS:
    return x, y
  path = np.append(0, np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y))))
  targets = np.linspace(0, path[-1], _NUM_CURVE_POINTS - 1)
  kept = np.append(np.searchsorted(path, targets), len(x) - 1)
  kept = np.unique(np.minimum(kept, len(x) - 1))
  return x[kept], y[kept]
