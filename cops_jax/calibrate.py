"""Chooses the thresholds of verdicts, by normal images or by labelled data."""

from __future__ import annotations

import dataclasses
import itertools
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
from cops_jax.progress import Progress
from cops_jax.scoring import ANOMALY
from cops_jax.thresholds import Thresholds


def from_normal_images(
  detector: AnomalyDetector,
  images: Iterable[AnyImage],
  number: int,
  false_alarms: float,
) -> Thresholds:
  """Thresholds that few normal images reach.

  Args:
    detector: of the run.
    images: as it takes them.
    number: of the images.
    false_alarms: share of the images that may be called anomalous, and that may
      show an anomalous pixel.

  Raises:
    InputError: there are no images, or one cannot be read.
  """
  if not number:
    raise InputError("there are no normal images to choose thresholds by")
  scores, peaks = [], []
  decoded = ((detector.decode(image), None) for image in images)
  for detection, _ in _detect(detector, decoded, number):
    scores.append(detection.image_score)
    peaks.append(detection.anomaly_map.max())
  image, pixel = (
    thresholds.of_false_positive_rate(np.array(values), false_alarms)
    for values in (scores, peaks)
  )
  return Thresholds(
    image,
    pixel,
    f"at most {false_alarms:.2%} false alarms on {number} normal images",
    detector.prompts_sha256,
  )


def from_labelled_data(
  detector: AnomalyDetector, examples: Sequence[Mapping[str, Any]]
) -> Thresholds:
  """Thresholds of the largest F1, of images and of pixels.

  Args:
    detector: of the run.
    examples: from `cops_jax.datasets.load`; without masks, the pixels'
      threshold is the highest that some pixel of each normal image reaches.

  Raises:
    InputError: one kind of images is missing, or one cannot be read.
  """
  scores, labels, peaks = [], [], []
  pixels = metrics.PixelMetrics()
  decoded = (_decode(detector, example) for example in examples)
  for detection, (label, mask) in _detect(detector, decoded, len(examples)):
    scores.append(detection.image_score)
    labels.append(label == ANOMALY)
    peaks.append(detection.anomaly_map.max())
    if mask is not None:
      pixels.add(detection.anomaly_map, mask)
  scores, labels = np.array(scores), np.array(labels)
  image = thresholds.of_largest_f1(scores, labels)
  if np.isnan(image):
    raise InputError(
      f"{examples.name!r} has {labels.sum()} anomalous and"
      f" {(~labels).sum()} normal images; to choose by F1 both are needed. With"
      " normal images alone use --normal."
    )
  pixel = pixels.best_threshold()
  if np.isnan(pixel):
    normal = np.array(peaks)[~labels]
    pixel = thresholds.of_false_positive_rate(normal, 0.0)
  return Thresholds(
    image,
    pixel,
    f"largest F1 on {len(scores)} images of {examples.name}",
    detector.prompts_sha256,
  )


def _decode(detector, example):
  """An example as `_detect` takes it, with its label and mask."""
  path, size = example["path"], detector.image_size
  image, mask = detector.decode(example["image"], path), None
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


if __name__ == "__main__":
  from cops_jax.commands.calibrate import main

  main()
