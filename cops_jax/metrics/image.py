"""Detection metrics of images: AUROC, average precision, F1-max."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cops_jax.metrics import curves
from cops_jax.metrics.pixels import (
  ExactPixelMetrics,
  PixelMetrics,
)
from cops_jax.typing import Bool, Float

METRICS = (
  "image_auroc",
  "image_ap",
  "image_f1_max",
  "pixel_auroc",
  "pixel_ap",
  "pixel_f1_max",
  "pixel_aupro",
  "pixel_aupro_200",
)


def image_metrics(
  scores: Float[np.ndarray, "n"], labels: Bool[np.ndarray, "n"]
) -> dict[str, float]:
  """Exact `image_auroc`, `image_ap` and `image_f1_max`.

  Args:
    scores: of the images.
    labels: whether they are anomalous.

  Returns:
    Values in [0, 1], or NaN where there are not both kinds of images.

  Raises:
    ValueError: a score is NaN.
  """
  _, *counts = _count(scores, labels)
  return {
    "image_auroc": curves.auroc(*counts),
    "image_ap": curves.average_precision(*counts),
    "image_f1_max": curves.f1_max(*counts),
  }


def image_curves(
  scores: Float[np.ndarray, "n"], labels: Bool[np.ndarray, "n"]
) -> dict[str, tuple[Float[np.ndarray, "_"], Float[np.ndarray, "_"]]]:
  """Curves "roc" and "pr" of images, as `PixelMetrics.curves` gives them.

  Arguments and errors as in `image_metrics`.
  """
  _, *counts = _count(scores, labels)
  return {
    "roc": curves.roc_curve(*counts),
    "pr": curves.precision_recall_curve(*counts),
  }


def best_image_threshold(
  scores: Float[np.ndarray, "n"], labels: Bool[np.ndarray, "n"]
) -> float:
  """The highest score that as a threshold has the F1-max; NaN if undefined.

  Arguments and errors as in `image_metrics`.
  """
  distinct, *counts = _count(scores, labels)
  best = curves.best_position(*counts)
  return float("nan") if best is None else float(distinct[best])


def balanced_image_threshold(
  scores: Float[np.ndarray, "n"], labels: Bool[np.ndarray, "n"]
) -> float:
  """The highest score of the largest balanced accuracy; NaN if undefined.

  Balanced accuracy is the mean of two shares: of the normal images below the
  threshold, and of the anomalous ones that reach it (its maximum is where
  Youden's J is largest, Cancer 1950). It is the same for any ratio of the two
  kinds.

  Arguments and errors as in `image_metrics`.
  """
  distinct, normal, anomalous = _count(scores, labels)
  if not normal.sum() or not anomalous.sum():
    return float("nan")
  found, false_alarms = (
    np.cumsum(counts[::-1])[::-1] for counts in (anomalous, normal)
  )
  # In whole numbers, so that equal ones are equal.
  gain = found * normal.sum() - false_alarms * anomalous.sum()
  return float(distinct[np.flatnonzero(gain == gain.max())[-1]])


def _count(scores, labels):
  """Distinct scores; how many normal and anomalous images have each."""
  if np.isnan(scores).any():
    raise ValueError("an image score is NaN")
  distinct, positions = np.unique(scores, return_inverse=True)
  anomalous = np.bincount(positions[labels], minlength=len(distinct))
  normal = np.bincount(positions[~labels], minlength=len(distinct))
  return distinct, normal, anomalous


def undefined_reasons(
  values: Mapping[str, float],
  labels: Bool[np.ndarray, "n"],
  pixels: PixelMetrics | ExactPixelMetrics,
) -> dict[str, str]:
  """Why metrics of a category are NaN.

  Args:
    values: the category's metrics.
    labels: of its images, whether they are anomalous.
    pixels: the state that has its masked images.

  Returns:
    A reason for each metric that is NaN: "no normal images", "no anomalous
    images", "no masks", "no normal pixels" or "no anomalous pixels".
  """
  num_normal, num_anomalous = pixels.num_pixels
  reasons = {
    "image": "no normal images" if labels.any() else "no anomalous images",
    "pixel": "no normal pixels" if num_anomalous else "no anomalous pixels",
  }
  if not num_normal and not num_anomalous:
    reasons["pixel"] = "no masks"
  return {
    name: reasons[name.split("_")[0]]
    for name, value in values.items()
    if np.isnan(value)
  }
