"""Detection metrics: exact ones for images, streaming ones for pixels.

All are computed from counts of normal and anomalous items at each distinct
score, so one formula serves both. Undefined metrics are NaN.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from cops_jax.typing import Bool, Float, Integer

# A score's bin is the leading bits of its float32 distance to the nearer end of
# [0, 1]: 11 bits of mantissa, so bins are fine where probabilities saturate.
_DROPPED_BITS = 12
_MIDDLE_BIN = int(np.float32(0.5).view(np.uint32)) >> _DROPPED_BITS
NUM_BINS = 2 * _MIDDLE_BIN + 1


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
  num_normal, num_anomalous = normal.sum(), anomalous.sum()
  if num_normal == 0 or num_anomalous == 0:
    return float("nan")
  below = np.cumsum(normal) - normal
  wins = np.sum(anomalous * (below + normal / 2.0))
  return float(wins / num_normal / num_anomalous)


def average_precision_from_counts(
  normal: Integer[np.ndarray, "t"], anomalous: Integer[np.ndarray, "t"]
) -> float:
  """Average precision, the step-wise sum over thresholds.

  `sum_t (recall_t - recall_{t-1}) precision_t`, as papers in this field report
  it; not the trapezoidal area. Arguments as in `auroc_from_counts`. NaN if
  either kind is absent.
  """
  if normal.sum() == 0 or anomalous.sum() == 0:
    return float("nan")
  anomalous, normal = anomalous[::-1], normal[::-1]
  found = np.cumsum(anomalous)
  flagged = found + np.cumsum(normal)
  precision = found / np.maximum(flagged, 1)
  return float(np.sum(anomalous * precision) / found[-1])


def image_metrics(
  scores: Float[np.ndarray, "n"], labels: Bool[np.ndarray, "n"]
) -> dict[str, float]:
  """Exact `image_auroc` and `image_ap`."""
  _, positions = np.unique(scores, return_inverse=True)
  length = positions.max(initial=-1) + 1
  anomalous = np.bincount(positions[labels], minlength=length)
  normal = np.bincount(positions[~labels], minlength=length)
  return {
    "image_auroc": auroc_from_counts(normal, anomalous),
    "image_ap": average_precision_from_counts(normal, anomalous),
  }


def score_bins(scores: Float[np.ndarray, "*n"]) -> Integer[np.ndarray, "*n"]:
  """Bin of each score in [0, 1]; never decreases with the score."""
  scores = np.clip(scores, 0.0, 1.0).astype(np.float32)
  is_low = scores < 0.5
  distance = np.where(is_low, scores, np.float32(1) - scores)
  bins = (distance.view(np.uint32) >> _DROPPED_BITS).astype(np.int64)
  return np.where(is_low, bins, 2 * _MIDDLE_BIN - bins)


@dataclasses.dataclass
class PixelHistogram:
  """Counts of pixels by ground truth and score, of any number of images.

  Its size is fixed, and counts are integers, so states merge exactly and in any
  order. Scores in one bin differ by less than one part in 2,048 of their
  distance to the nearer of 0 and 1, and count as ties.
  """

  counts: Integer[np.ndarray, "2 bins"] = dataclasses.field(
    default_factory=lambda: np.zeros((2, NUM_BINS), np.int64)
  )

  def add(
    self,
    anomaly_map: Float[np.ndarray, "h w"],
    mask: Bool[np.ndarray, "h w"],
  ) -> None:
    """Counts one image's pixels.

    Raises:
      ValueError: the map holds a NaN.
    """
    if np.isnan(anomaly_map).any():
      raise ValueError("the anomaly map holds NaN")
    bins = score_bins(anomaly_map)
    for row, pixels in zip(self.counts, (bins[~mask], bins[mask]), strict=True):
      row += np.bincount(pixels, minlength=NUM_BINS)

  def merge(self, other: PixelHistogram) -> PixelHistogram:
    """The state of both sets of images together."""
    return PixelHistogram(self.counts + other.counts)

  def compute(self) -> dict[str, float]:
    """`pixel_auroc` and `pixel_ap`."""
    return {
      "pixel_auroc": auroc_from_counts(*self.counts),
      "pixel_ap": average_precision_from_counts(*self.counts),
    }
