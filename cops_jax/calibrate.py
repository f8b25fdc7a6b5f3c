"""Chooses the thresholds of verdicts, by normal images or by labelled data."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cops_jax import metrics, thresholds
from cops_jax.detector import (
  AnomalyDetector,
  AnyImage,
  DecodedImage,
  Detection,
)
from cops_jax.errors import InputError, shorten
from cops_jax.images.decoding import (
  decode_mask,
  open_image,
  read_orientation,
)
from cops_jax.images.tiles import normalize
from cops_jax.metrics.proportions import CONFIDENCE, estimate, least_total
from cops_jax.progress import Progress
from cops_jax.scoring import ANOMALY
from cops_jax.thresholds import Thresholds

_logger = logging.getLogger(__name__)


def from_normal_images(
  detector: AnomalyDetector,
  images: Sequence[AnyImage],
  false_alarms: float,
  tiles: str = "",
) -> Thresholds:
  """Thresholds that few normal images reach.

  Args:
    detector: of the run.
    images: as it takes them.
    false_alarms: share of the images that may be called anomalous, and that may
      show an anomalous pixel.
    tiles: that images will be looked at by, see `AnomalyDetector`.

  Raises:
    InputError: there are no images, or one cannot be read; or the tiles are
      none.
  """
  decoded = ((detector.decode(image, tiles=tiles), None) for image in images)
  found = [row for row, _ in _detect(detector, decoded, len(images))]
  scores, peaks = _scores_and_peaks(found)
  return _of_false_alarms(
    detector, scores, peaks, np.zeros(len(scores), bool), false_alarms, tiles
  )


def from_labelled_data(
  detector: AnomalyDetector,
  examples: Sequence[Mapping[str, Any]],
  false_alarms: float | None = None,
  tiles: str = "",
) -> Thresholds:
  """Thresholds of the largest balanced accuracy of images, and F1 of pixels.

  Args:
    detector: of the run.
    examples: from `cops_jax.datasets.load`; without masks, the pixels'
      threshold is the highest that some pixel of each normal image reaches.
    false_alarms: share of the normal images that may be called anomalous, and
      that may show an anomalous pixel, which then decide both thresholds.
    tiles: that images will be looked at by, see `AnomalyDetector`.

  Raises:
    InputError: one kind of images is missing, or one cannot be read; or the
      tiles are none.
  """
  found, labels = [], []
  pixels = metrics.PixelMetrics()
  decoded = (_decode(detector, example, tiles) for example in examples)
  for detection, (label, mask) in _detect(detector, decoded, len(examples)):
    found.append(detection)
    labels.append(label == ANOMALY)
    if mask is not None:
      pixels.add(detection.anomaly_map, mask)
  scores, peaks = _scores_and_peaks(found)
  labels = np.array(labels)
  if false_alarms is not None:
    return _of_false_alarms(
      detector, scores, peaks, labels, false_alarms, tiles
    )
  image = thresholds.of_balanced_accuracy(scores, labels)
  if np.isnan(image):
    raise InputError(
      f"{examples.name!r} has {labels.sum()} anomalous and"
      f" {(~labels).sum()} normal images; to choose by their balanced accuracy"
      " both are needed. With normal images alone use --normal."
    )
  pixel = pixels.count().best_threshold()
  if np.isnan(pixel):
    pixel = thresholds.of_false_positive_rate(peaks[~labels], 0.0)
  return Thresholds(
    image,
    pixel,
    f"largest balanced accuracy on {len(scores)} images of {examples.name}"
    f"{_by(tiles)}",
    detector.prompts_sha256,
    *_count_errors(scores, labels, image),
    normalize(tiles),
  )


def _scores_and_peaks(detections):
  """Of images, and the highest values of their maps."""
  return (
    np.array([row.image_score for row in detections]),
    np.array([row.anomaly_map.max() for row in detections]),
  )


def _of_false_alarms(detector, scores, peaks, labels, rate, tiles):
  normal = ~labels
  if not normal.any():
    raise InputError("there are no normal images to choose thresholds by")
  image, pixel = (
    thresholds.of_false_positive_rate(values[normal], rate)
    for values in (scores, peaks)
  )
  false_alarms, misses = _count_errors(scores, labels, image)
  if 0 < rate * false_alarms.total < 1:
    _logger.warning(
      "%d normal images cannot show a rate of %.3g%%: the threshold lies above"
      " all of them, which shows at most %.1f%% with %.0f%% confidence; to show"
      " %.3g%% takes %d normal images",
      *(false_alarms.total, 100 * rate, 100 * false_alarms.high),
      *(100 * CONFIDENCE, 100 * rate, least_total(rate)),
    )
  return Thresholds(
    image,
    pixel,
    f"reached by {false_alarms.count} of {false_alarms.total} normal images, at"
    f" most {false_alarms.high:.1%} of others with {CONFIDENCE:.0%} confidence"
    f"{_by(tiles)}",
    detector.prompts_sha256,
    false_alarms,
    misses,
    normalize(tiles),
  )


def _by(tiles):
  return f", looked at with tiles {tiles}" if normalize(tiles) else ""


def _count_errors(scores, labels, threshold):
  """False alarms and misses; None where there are no images of a kind."""
  return tuple(
    estimate(int(is_wrong.sum()), len(is_wrong)) if len(is_wrong) else None
    for is_wrong in (scores[~labels] >= threshold, scores[labels] < threshold)
  )


def _decode(detector, example, tiles):
  """An example as `_detect` takes it, with its label and mask."""
  path, size = example["path"], detector.image_size
  image, mask = detector.decode(example["image"], path, tiles), None
  if example["has_mask"] and example["label"] != ANOMALY:
    mask = np.zeros((size, size), bool)
  elif example["has_mask"]:
    try:
      # Masks are drawn over the pixels as they are stored, and turn with them.
      with open_image(example["image"]) as stored:
        orientation = read_orientation(stored)
      mask = decode_mask(example["mask"], size, orientation).astype(bool)
    except Exception as error:  # PIL raises many kinds of errors.
      raise InputError(
        f"the mask of {path} cannot be read: {shorten(error)}"
      ) from error
  return image, (example["label"], mask)


def _detect(
  detector: AnomalyDetector,
  decoded: Iterable[tuple[DecodedImage, Any]],
  number: int,
) -> Iterator[tuple[Detection, Any]]:
  """Detections with maps of the model's size, each with what came with it."""
  size = (detector.image_size, detector.image_size)
  progress = Progress(number, "images")
  decoded, done = iter(decoded), 0
  while batch := list(itertools.islice(decoded, detector.max_batch_size)):
    images = [dataclasses.replace(image, size=size) for image, _ in batch]
    rest = [beside for _, beside in batch]
    yield from zip(detector.detect(images), rest, strict=True)
    done += len(batch)
    progress.update(done, "choosing thresholds")
