"""Detection metrics: exact ones for images, streaming ones for pixels.

All are computed from counts of normal and anomalous items at each distinct
score, so one formula serves images, binned pixels and exact pixels. Undefined
metrics are NaN.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from cops_jax.typing import Bool, Float, Integer

METRICS = (
  "image_auroc",
  "image_ap",
  "image_f1_max",
  "pixel_auroc",
  "pixel_ap",
  "pixel_f1_max",
  "pixel_aupro",
)
PIXEL_METRICS_MODES = ("binned", "exact")

# AUPRO is integrated up to this false-positive rate.
_AUPRO_LIMIT = 0.3
_NUM_CURVE_POINTS = 300

# Bins of a score's distance to the nearer end of [0, 1]. Where probabilities
# saturate they are the leading bits of the float32 distance, 11 of its
# mantissa; from 1/16 on, of equal width. Distances below 2**-30 share one.
_DROPPED_BITS = 12
_LEAST_BIN = int(np.float32(2**-30).view(np.int32)) >> _DROPPED_BITS
_EQUAL_FROM, _EQUAL_BINS = 1 / 16, 2**16
_NUM_LOG_BINS = (
  int(np.float32(_EQUAL_FROM).view(np.int32)) >> _DROPPED_BITS
) - _LEAST_BIN
_EQUAL_OFFSET = _NUM_LOG_BINS - int(_EQUAL_FROM * _EQUAL_BINS)
_MIDDLE_BIN = _EQUAL_OFFSET + _EQUAL_BINS // 2
NUM_BINS = 2 * _MIDDLE_BIN + 1
# Maps leave [0, 1] by no more than this where devices multiply in bfloat16.
_TOLERANCE = 0.01
# A region's pixels together weigh this in the histogram of region overlap.
_REGION_WEIGHT = 2**40


def _rates(counts):
  """Share of items at or above each score, from the highest; 0 is put first."""
  found = np.cumsum(np.append(0, counts[::-1]), dtype=float)
  return found / found[-1]


def _is_defined(normal, anomalous):
  return normal.sum() > 0 and anomalous.sum() > 0


def auroc_from_counts(
  normal: Integer[np.ndarray, "t"], anomalous: Integer[np.ndarray, "t"]
) -> float:
  """Area under the ROC curve, ties counting half.

  Args:
    normal, anomalous: how many items have each score, by ascending score.

  Returns:
    The probability that an anomalous item scores above a normal one (Hanley and
    McNeil 1982); NaN if either kind is absent.
  """
  if not _is_defined(normal, anomalous):
    return float("nan")
  return _area(_rates(normal), _rates(anomalous), 1.0)


def average_precision_from_counts(
  normal: Integer[np.ndarray, "t"], anomalous: Integer[np.ndarray, "t"]
) -> float:
  """Average precision, the step-wise sum over thresholds.

  `sum_t (recall_t - recall_{t-1}) precision_t`, as papers in this field report
  it (scikit-learn's `average_precision_score`); not the trapezoidal area.
  Arguments as in `auroc_from_counts`. NaN if either kind is absent.
  """
  if not _is_defined(normal, anomalous):
    return float("nan")
  recall, precision = _precision_recall(normal, anomalous)
  return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def f1_max_from_counts(
  normal: Integer[np.ndarray, "t"], anomalous: Integer[np.ndarray, "t"]
) -> float:
  """The largest F1 over all thresholds that are scores.

  What scores at least as high is called anomalous. Papers in this field report
  it as F1-max (Jeong et al., WinCLIP, CVPR 2023). Arguments as in
  `auroc_from_counts`. NaN if either kind is absent.
  """
  if not _is_defined(normal, anomalous):
    return float("nan")
  return float(_f1(normal, anomalous).max())


def aupro_from_counts(
  normal: Integer[np.ndarray, "t"], overlap: Float[np.ndarray, "t"]
) -> float:
  """Area under the per-region overlap curve up to 30 % false positives.

  The curve has the mean over all regions of the share of a region's pixels that
  are found, against the false-positive rate of all normal pixels. Its area by
  the trapezoid, with linear interpolation at 0.3, is divided by 0.3 (Bergmann
  et al., The MVTec Anomaly Detection Dataset, IJCV 2021).

  Args:
    normal: how many normal pixels have each score, by ascending score.
    overlap: in any unit, the sum over anomalous pixels of each score of one
      divided by the area of the pixel's region.

  Returns:
    The area, in [0, 1]; NaN without normal pixels or regions.
  """
  if not _is_defined(normal, overlap):
    return float("nan")
  area = _area(_rates(normal), _rates(overlap), _AUPRO_LIMIT)
  return area / _AUPRO_LIMIT


def _f1(normal, anomalous):
  """Of each score as threshold, from the highest."""
  found = np.cumsum(anomalous[::-1])
  flagged = found + np.cumsum(normal[::-1])
  return 2 * found / (flagged + found[-1])


def _best(scores, normal, anomalous):
  """The highest score of largest F1, or None."""
  if not _is_defined(normal, anomalous):
    return None
  return scores[::-1][_f1(normal, anomalous).argmax()]


def _area(x, y, limit):
  """Under the polygon through points of ascending x, up to x = limit."""
  end = np.searchsorted(x, limit, side="right")
  height = np.interp(limit, x, y)
  x, y = np.append(x[:end], limit), np.append(y[:end], height)
  return float(np.sum(np.diff(x) * (y[1:] + y[:-1])) / 2)


def _precision_recall(normal, anomalous):
  """Recall and precision from the highest score on, one at least flagged."""
  found = np.cumsum(anomalous[::-1])
  flagged = found + np.cumsum(normal[::-1])
  found, flagged = found[flagged > 0], flagged[flagged > 0]
  return found / found[-1], found / flagged


def _thin(x, y):
  """Few points of a curve: what lies between two is close to the first."""
  path = np.append(0.0, np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y))))
  wanted = np.linspace(0.0, path[-1], _NUM_CURVE_POINTS - 1)
  kept = np.append(np.searchsorted(path, wanted), len(path) - 1)
  kept = np.unique(kept)
  return x[kept], y[kept]


def _curves(normal, anomalous):
  if not _is_defined(normal, anomalous):
    return {name: (np.empty(0), np.empty(0)) for name in ("roc", "pr")}
  return {
    "roc": _thin(_rates(normal), _rates(anomalous)),
    "pr": _thin(*_precision_recall(normal, anomalous)),
  }


def _image_counts(scores, labels):
  if np.isnan(scores).any():
    raise ValueError("an image score is NaN")
  distinct, positions = np.unique(scores, return_inverse=True)
  anomalous = np.bincount(positions[labels], minlength=len(distinct))
  normal = np.bincount(positions[~labels], minlength=len(distinct))
  return distinct, normal, anomalous


def image_metrics(
  scores: Float[np.ndarray, "n"], labels: Bool[np.ndarray, "n"]
) -> dict[str, float]:
  """Exact `image_auroc`, `image_ap` and `image_f1_max`.

  Args:
    scores: of the images.
    labels: whether they are anomalous.

  Raises:
    ValueError: a score is NaN.
  """
  _, normal, anomalous = _image_counts(scores, labels)
  return {
    "image_auroc": auroc_from_counts(normal, anomalous),
    "image_ap": average_precision_from_counts(normal, anomalous),
    "image_f1_max": f1_max_from_counts(normal, anomalous),
  }


def image_curves(
  scores: Float[np.ndarray, "n"], labels: Bool[np.ndarray, "n"]
) -> dict[str, tuple[Float[np.ndarray, "p"], Float[np.ndarray, "p"]]]:
  """Curves "roc" and "pr" of images, see `PixelMetrics.curves`."""
  _, normal, anomalous = _image_counts(scores, labels)
  return _curves(normal, anomalous)


def best_image_threshold(
  scores: Float[np.ndarray, "n"], labels: Bool[np.ndarray, "n"]
) -> float:
  """The highest score of largest F1 as a threshold; NaN if undefined."""
  best = _best(*_image_counts(scores, labels))
  return float("nan") if best is None else float(best)


def score_bins(scores: Float[np.ndarray, "*n"]) -> Integer[np.ndarray, "*n"]:
  """Bin of each score in [0, 1]; never decreases with the score."""
  scores = np.clip(scores, 0.0, 1.0).astype(np.float32)
  distance = np.minimum(scores, np.float32(1) - scores)
  log_bins = (distance.view(np.int32) >> _DROPPED_BITS) - _LEAST_BIN
  equal_bins = (distance * np.float32(_EQUAL_BINS)).astype(np.int32)
  bins = np.where(
    distance < np.float32(_EQUAL_FROM),
    np.maximum(log_bins, 0),
    equal_bins + _EQUAL_OFFSET,
  )
  return np.where(scores < np.float32(0.5), bins, 2 * _MIDDLE_BIN - bins)


def _lowest_score(bin_index):
  """Lowest float32 score whose bin is not below; float32 bits are ordered."""
  low, high = 0, int(np.float32(1).view(np.int32))
  while low < high:
    middle = (low + high) // 2
    if score_bins(np.array([middle], np.int32).view(np.float32))[0] < bin_index:
      low = middle + 1
    else:
      high = middle
  return float(np.int32(low).view(np.float32))


def _region_areas(mask):
  """Area of the region of each anomalous pixel, in the order of the pixels."""
  rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
  mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
  labels, _ = ndimage.label(mask, structure=np.ones((3, 3), bool))
  labels = labels[mask]
  return np.bincount(labels)[labels]


class _Metrics:
  """What both states of pixels compute from counts by ascending score."""

  def _by_score(self):
    """Distinct scores or bins; normal, anomalous pixels; region overlap."""
    raise NotImplementedError

  def _threshold(self, score):
    raise NotImplementedError

  @property
  def num_pixels(self) -> tuple[int, int]:
    """How many normal and anomalous pixels there are."""
    _, normal, anomalous, _ = self._by_score()
    return int(normal.sum()), int(anomalous.sum())

  def compute(self) -> dict[str, float]:
    """`pixel_auroc`, `pixel_ap`, `pixel_f1_max` and `pixel_aupro`."""
    _, normal, anomalous, overlap = self._by_score()
    return {
      "pixel_auroc": auroc_from_counts(normal, anomalous),
      "pixel_ap": average_precision_from_counts(normal, anomalous),
      "pixel_f1_max": f1_max_from_counts(normal, anomalous),
      "pixel_aupro": aupro_from_counts(normal, overlap),
    }

  def curves(
    self,
  ) -> dict[str, tuple[Float[np.ndarray, "_"], Float[np.ndarray, "_"]]]:
    """Curves to draw, of at most 300 points; empty where undefined.

    Returns:
      "roc" (false-positive rate, true-positive rate), "pr" (recall, precision)
      and "pro" (false-positive rate, per-region overlap), from the highest
      threshold to the lowest.
    """
    _, normal, anomalous, overlap = self._by_score()
    curves = _curves(normal, anomalous)
    if not _is_defined(normal, overlap):
      return {**curves, "pro": (np.empty(0), np.empty(0))}
    return {**curves, "pro": _thin(_rates(normal), _rates(overlap))}

  def best_threshold(self) -> float:
    """The highest score of largest F1 as a threshold; NaN if undefined."""
    best = _best(*self._by_score()[:3])
    return float("nan") if best is None else self._threshold(best)


def _check(anomaly_map, mask):
  if anomaly_map.shape != mask.shape:
    raise ValueError(
      f"the anomaly map has shape {anomaly_map.shape}, the mask {mask.shape}"
    )
  if np.isnan(anomaly_map.max()):
    raise ValueError("the anomaly map holds NaN")


@dataclasses.dataclass
class PixelMetrics(_Metrics):
  """Counts of pixels by ground truth and score, of any number of images.

  Its size is fixed, and counts are integers, so states merge exactly and in any
  order. Scores in one bin count as ties.

  Attributes:
    counts: of normal and of anomalous pixels.
    overlap: of anomalous pixels, each weighing 2**40 divided by the area of its
      region (8-connected).
  """

  counts: Integer[np.ndarray, "2 bins"] = dataclasses.field(
    default_factory=lambda: np.zeros((2, NUM_BINS), np.int64)
  )
  overlap: Integer[np.ndarray, "bins"] = dataclasses.field(
    default_factory=lambda: np.zeros(NUM_BINS, np.int64)
  )

  def add(
    self,
    anomaly_map: Float[np.ndarray, "h w"],
    mask: Bool[np.ndarray, "h w"],
  ) -> None:
    """Counts one image's pixels.

    Raises:
      ValueError: the map holds a NaN or a value outside of [0, 1], or the
        shapes differ.
    """
    _check(anomaly_map, mask)
    low, high = anomaly_map.min(), anomaly_map.max()
    if low < -_TOLERANCE or high > 1 + _TOLERANCE:
      raise ValueError(
        f"the anomaly map has values from {low} to {high}, not in [0, 1]"
      )
    bins = score_bins(anomaly_map).reshape(-1)
    self.counts[0] += np.bincount(bins, minlength=NUM_BINS)
    anomalous = bins[mask.reshape(-1)]
    if len(anomalous):
      np.subtract.at(self.counts[0], anomalous, 1)
      np.add.at(self.counts[1], anomalous, 1)
      weights = np.rint(_REGION_WEIGHT / _region_areas(mask)).astype(np.int64)
      np.add.at(self.overlap, anomalous, weights)

  def merge(self, other: PixelMetrics) -> PixelMetrics:
    """The state of both sets of images together."""
    return PixelMetrics(
      self.counts + other.counts, self.overlap + other.overlap
    )

  def arrays(self) -> dict[str, Integer[np.ndarray, "..."]]:
    """The whole state, for `from_arrays`."""
    return {"counts": self.counts, "overlap": self.overlap}

  @classmethod
  def from_arrays(
    cls, arrays: Mapping[str, Integer[np.ndarray, "..."]]
  ) -> PixelMetrics:
    """The state that gave these arrays.

    Raises:
      ValueError: they are no such state's.
    """
    for name, array in cls().arrays().items():
      if name not in arrays or arrays[name].shape != array.shape:
        raise ValueError(f"{name!r} is absent or not of shape {array.shape}")
    return cls(
      np.array(arrays["counts"], np.int64),
      np.array(arrays["overlap"], np.int64),
    )

  def _by_score(self):
    bins = np.flatnonzero(self.counts.any(axis=0))
    return bins, *self.counts[:, bins], self.overlap[bins].astype(float)

  def _threshold(self, score):
    return _lowest_score(score)


class ExactPixelMetrics(_Metrics):
  """All pixels of some images, for small data and to check `PixelMetrics`."""

  def __init__(self) -> None:
    self._images = []

  def add(
    self,
    anomaly_map: Float[np.ndarray, "h w"],
    mask: Bool[np.ndarray, "h w"],
  ) -> None:
    """Keeps one image's pixels.

    Raises:
      ValueError: the map holds a NaN, or the shapes differ.
    """
    _check(anomaly_map, mask)
    overlap = np.zeros(mask.shape)
    if mask.any():
      overlap[mask] = 1 / _region_areas(mask)
    pixels = (anomaly_map.copy(), mask.copy(), overlap)
    self._images.append([field.reshape(-1) for field in pixels])

  def merge(self, other: ExactPixelMetrics) -> ExactPixelMetrics:
    """The state of both sets of images together."""
    merged = ExactPixelMetrics()
    merged._images = self._images + other._images
    return merged

  def _by_score(self):
    if not self._images:
      return np.empty(0), *np.zeros((2, 0), int), np.empty(0)
    scores, labels, overlap = map(
      np.concatenate, zip(*self._images, strict=True)
    )
    distinct, positions = np.unique(scores, return_inverse=True)
    counts = (
      np.bincount(positions, weights, len(distinct))
      for weights in (~labels, labels, overlap)
    )
    normal, anomalous, overlap = counts
    return distinct, normal.astype(int), anomalous.astype(int), overlap

  def _threshold(self, score):
    return float(score)


def make_pixel_metrics(mode: str) -> PixelMetrics | ExactPixelMetrics:
  """An empty state; `mode` is one of `PIXEL_METRICS_MODES`.

  Raises:
    ValueError: it is another.
  """
  if mode not in PIXEL_METRICS_MODES:
    raise ValueError(f"{mode!r} is not one of {PIXEL_METRICS_MODES}")
  return PixelMetrics() if mode == "binned" else ExactPixelMetrics()


def undefined_reasons(
  values: Mapping[str, float],
  labels: Bool[np.ndarray, "n"],
  pixels: PixelMetrics | ExactPixelMetrics,
) -> dict[str, str]:
  """Why metrics are NaN.

  Args:
    values: a category's metrics, by name.
    labels: of its images, whether they are anomalous.
    pixels: of its masked images.

  Returns:
    A short reason for each metric that is NaN, such as "no normal images".
  """
  num_normal, num_anomalous = pixels.num_pixels
  if num_normal == num_anomalous == 0:
    pixel_reason = "no masks"
  else:
    pixel_reason = (
      "no anomalous pixels" if num_anomalous == 0 else "no normal pixels"
    )
  image_reason = "no normal images" if labels.any() else "no anomalous images"
  reasons = {"image": image_reason, "pixel": pixel_reason}
  return {
    name: reasons[name.split("_")[0]]
    for name, value in values.items()
    if np.isnan(value)
  }
