"""Chooses thresholds from normal images or labelled data."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cops_jax import metrics, thresholds
from cops_jax.detector import AnomalyDetector
from cops_jax.errors import InputError
from cops_jax.images import AnyImage
from cops_jax.images.masks import example_mask
from cops_jax.images.tiles import normalize
from cops_jax.paths import readable
from cops_jax.progress import Progress
from cops_jax.scoring import ANOMALY, NORMAL
from cops_jax.tables import count_notes, count_of
from cops_jax.thresholds import CONFIDENCE, Proportion, Thresholds, estimate
from cops_jax.typing import Bool, Float

_logger = logging.getLogger(__name__)


def from_images(
  detector: AnomalyDetector,
  normal: Sequence[AnyImage],
  anomalous: Sequence[AnyImage] = (),
  false_alarms: float | None = None,
  tiles: str = "",
) -> Thresholds:
  """Returns thresholds chosen from images without masks.

  Args:
    detector: detector that the thresholds are for.
    normal: normal images in any form that `images.read` accepts.
    anomalous: anomalous images in the same forms.
    false_alarms: largest share of the normal images that can reach the image
      threshold, and largest share that can have a pixel at the pixel threshold.
      None applies the rule of `from_labelled_data`, which needs anomalous
      images.
    tiles: tiles that predictions will use, see `AnomalyDetector`.

  Raises:
    InputError: if there are too few images, an image cannot be read, or the
      tiles are invalid.

  Example:
    ```python
    detector = AnomalyDetector.from_workdir("runs/visa")
    good = sorted(pathlib.Path("photos/good").glob("*.jpg"))
    chosen = calibrate.from_images(detector, good, false_alarms=0.01)
    print(thresholds.write_thresholds("runs/visa", chosen))
    ```
  """
  images = [*normal, *anomalous]
  paths = (
    readable(image) if isinstance(image, (str, os.PathLike)) else f"image {n}"
    for n, image in enumerate(images)
  )
  labels = [NORMAL] * len(normal) + [ANOMALY] * len(anomalous)
  rows = (
    (path, detector.decode(image, tiles=tiles), label, None, ())
    for path, image, label in zip(paths, images, labels, strict=True)
  )
  scored = _score(detector, rows, len(images))
  source = f"{len(normal)} normal and {len(anomalous)} anomalous images"
  return _choose(detector, scored, source, false_alarms, tiles)


def from_labelled_data(
  detector: AnomalyDetector,
  examples: Sequence[Mapping[str, Any]],
  false_alarms: float | None = None,
  tiles: str = "",
) -> Thresholds:
  """Returns thresholds chosen from labelled data.

  The image threshold has the largest balanced accuracy, and the pixel threshold
  the largest F1. Without masks, at most as many normal images reach the pixel
  threshold as reach the image threshold.

  Args:
    detector: detector that the thresholds are for.
    examples: labelled examples from `cops_jax.datasets.load`.
    false_alarms: largest share of false alarms, as in `from_images`. It
      replaces both rules.
    tiles: tiles that predictions will use, see `AnomalyDetector`.

  Raises:
    InputError: if there are no normal images or no anomalous ones, an image
      cannot be read, or the tiles are invalid.

  Example:
    ```python
    examples = datasets.load("folder:/data/screws", "test")
    chosen = calibrate.from_labelled_data(detector, examples)
    ```
  """
  rows = (_decode(detector, example, tiles) for example in examples)
  scored = _score(detector, rows, len(examples))
  source = f"{count_of(len(scored.scores), 'image')} of {examples.name}"
  return _choose(detector, scored, source, false_alarms, tiles)


@dataclasses.dataclass(frozen=True)
class _Scored:
  """Scores of images, maxima of their maps, labels (True if anomalous)."""

  scores: Float[np.ndarray, "n"]
  peaks: Float[np.ndarray, "n"]
  labels: Bool[np.ndarray, "n"]
  pixels: metrics.PixelMetrics

  def errors(
    self, threshold: float
  ) -> tuple[Proportion | None, Proportion | None]:
    """Returns false alarms and misses; None for a kind without images."""
    flagged = self.scores >= threshold
    return tuple(
      estimate(int(is_wrong.sum()), len(is_wrong)) if len(is_wrong) else None
      for is_wrong in (flagged[~self.labels], ~flagged[self.labels])
    )


def _choose(detector, scored, source, false_alarms, tiles):
  """Chooses by the share of false alarms or, if None, by balanced accuracy."""
  if false_alarms is not None:
    return _few_false_alarms(detector, scored, false_alarms, tiles)
  image = thresholds.of_balanced_accuracy(scored.scores, scored.labels)
  if np.isnan(image):
    raise InputError(
      f"there are {scored.labels.sum()} anomalous and {(~scored.labels).sum()}"
      " normal images, but balanced accuracy needs both. Use --normal if you"
      " have only normal images."
    )
  method = f"largest balanced accuracy on {source}"
  pixel = scored.pixels.count().best_threshold()
  if np.isnan(pixel):
    count, total = scored.errors(image)[0].count, int((~scored.labels).sum())
    count = min(count, total - 1)
    normal_peaks = scored.peaks[~scored.labels]
    pixel = thresholds.of_false_positive_rate(normal_peaks, count / total)
    method += (
      f"; no masks: pixel threshold reached in {count} of {total} normal images"
    )
  return _make(detector, scored, image, pixel, method, tiles)


def _few_false_alarms(detector, scored, rate, tiles):
  if scored.labels.all():
    raise InputError(
      "there are no normal images to choose thresholds from: add some"
    )
  image, pixel = (
    thresholds.of_false_positive_rate(values[~scored.labels], rate)
    for values in (scored.scores, scored.peaks)
  )
  false_alarms, _ = scored.errors(image)
  method = (
    f"reached by {false_alarms.count} of {false_alarms.total} normal images;"
    f" true rate at most {false_alarms.high:.1%} ({CONFIDENCE:.0%} confidence)"
  )
  return _make(detector, scored, image, pixel, method, tiles)


def _make(detector, scored, image, pixel, method, tiles):
  tiles = normalize(tiles)
  if tiles:
    method += f", with tiles {tiles}"
  if detector.num_normal_images:
    method += f", with reference images ({detector.num_normal_images})"
  return Thresholds(
    *(image, pixel, method, detector.prompts_sha256, *scored.errors(image)),
    *(tiles, detector.normal_images_sha256),
  )


def _decode(detector, example, tiles):
  """Returns one of the rows that `_score` reads."""
  path = example["path"]
  image = detector.decode(example["image"], path, tiles)
  try:
    mask = example_mask(
      example, image.orientation, image.size, detector.reading
    )
  except InputError as error:
    raise InputError(f"{path}: {error}") from error
  mask, notes = mask.fit(detector.image_size)
  mask = mask.astype(bool) if example["has_mask"] else None
  return path, image, example["label"], mask, notes


def _score(detector, rows, number):
  """Scores images at the model's size and collects their labels and masks.

  A row has an image's path, the decoded image, its label, its mask or None, and
  notes on the mask.
  """
  size = (detector.image_size, detector.image_size)
  progress = Progress(number, "images")
  scores, peaks, labels = [], [], []
  pixels, notes = metrics.PixelMetrics(), {}
  rows, ahead = itertools.tee(rows)
  detections = detector.detect(
    dataclasses.replace(image, size=size) for _, image, *_ in ahead
  )
  for detection, row in zip(detections, rows, strict=True):
    path, image, label, mask, mask_notes = row
    notes[path] = "\n".join([*image.notes, *mask_notes])
    scores.append(detection.image_score)
    peaks.append(detection.anomaly_map.max())
    labels.append(label == ANOMALY)
    if mask is not None:
      pixels.add(detection.anomaly_map, mask)
    progress.update(len(scores), "choosing thresholds")
  for note in count_notes(notes):
    _logger.warning("%s", note)
  return _Scored(
    np.array(scores), np.array(peaks), np.array(labels, bool), pixels
  )
