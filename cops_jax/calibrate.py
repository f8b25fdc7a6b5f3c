"""Chooses the thresholds of a run's verdicts and keeps them with it.

  python -m cops_jax.calibrate --workdir=runs/visa --data=folder:/data/screws
  python -m cops_jax.calibrate --workdir=runs/a --data=btad --false_alarms=0.01
  python -m cops_jax.calibrate --workdir=runs/visa --normal photos/*.jpg

With labelled data the thresholds are those of the largest F1, or those that no
more than a share of the normal images reaches. With normal images alone they
are the latter.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from cops_jax import metrics, thresholds
from cops_jax.detector import AnomalyDetector, Detection
from cops_jax.errors import InputError
from cops_jax.images import decode_mask, find_images, resize_map
from cops_jax.progress import Progress, show_messages
from cops_jax.scoring import ANOMALY
from cops_jax.thresholds import Thresholds

_FALSE_ALARMS = 0.01


def from_normal_images(
  detector: AnomalyDetector, images: Sequence[Any], false_alarms: float
) -> Thresholds:
  """Thresholds that few normal images reach.

  Args:
    detector: of the run.
    images: as it takes them.
    false_alarms: share of the images that may be called anomalous, and that may
      show an anomalous pixel.

  Raises:
    InputError: there are no images, or one cannot be read.
  """
  if not images:
    raise InputError("there are no normal images to choose thresholds by")
  scores, peaks = [], []
  for detection in _detect(detector, images):
    scores.append(detection.image_score)
    peaks.append(detection.anomaly_map.max())
  image, pixel = (
    thresholds.of_false_positive_rate(np.array(values), false_alarms)
    for values in (scores, peaks)
  )
  return Thresholds(
    image,
    pixel,
    f"at most {false_alarms:.2%} false alarms on {len(scores)} normal images",
  )


def from_labelled_data(
  detector: AnomalyDetector, examples: Sequence[Any]
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
  size = detector.image_size
  images = (example["image"] for example in examples)
  for example, detection in zip(
    examples, _detect(detector, images, len(examples)), strict=True
  ):
    scores.append(detection.image_score)
    labels.append(example["label"] == ANOMALY)
    peaks.append(detection.anomaly_map.max())
    if example["has_mask"]:
      mask = decode_mask(example["mask"], size).astype(bool)
      pixels.add(resize_map(detection.anomaly_map, (size, size)), mask)
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
    image, pixel, f"largest F1 on {len(scores)} images of {examples.name}"
  )


def _detect(
  detector: AnomalyDetector, images: Iterable[Any], number: int | None = None
) -> Iterator[Detection]:
  number = len(images) if number is None else number
  progress = Progress(number, "images")
  images, done = iter(images), 0
  while batch := list(itertools.islice(images, detector.max_batch_size)):
    yield from detector(batch)
    done += len(batch)
    progress.update(done, "choosing thresholds")


def main(arguments: list[str] | None = None) -> None:
  """The command line; an `InputError` ends it with its sentence."""
  parser = argparse.ArgumentParser(
    prog="python -m cops_jax.calibrate",
    description=__doc__.partition("\n")[0],
    allow_abbrev=False,
  )
  parser.add_argument("--workdir", required=True, help="of a training run")
  group = parser.add_mutually_exclusive_group(required=True)
  group.add_argument(
    "--data", help="labelled data: a data set, folder:PATH or meta_json:PATH"
  )
  group.add_argument(
    "--normal", nargs="+", help="files, folders and patterns of normal images"
  )
  parser.add_argument(
    "--false_alarms",
    type=float,
    help="share of the normal images that may be called anomalous; by default"
    f" the largest F1 decides, and with --normal {_FALSE_ALARMS}",
  )
  parser.add_argument("--data_dir", help="where TFDS keeps prepared data sets")
  options = parser.parse_args(arguments)
  show_messages()
  try:
    rate = options.false_alarms
    if rate is not None and not 0 <= rate < 1:
      raise InputError(f"--false_alarms is {rate}, expected from 0 to below 1")
    detector = AnomalyDetector.from_workdir(options.workdir)
    if options.normal:
      rate = _FALSE_ALARMS if rate is None else rate
      chosen = from_normal_images(detector, find_images(options.normal), rate)
    else:
      from cops_jax import datasets

      examples = datasets.load(options.data, "test", options.data_dir)
      if rate is None:
        chosen = from_labelled_data(detector, examples)
      else:
        normal = [row["image"] for row in examples if row["label"] != ANOMALY]
        chosen = from_normal_images(detector, normal, rate)
    path = thresholds.write_thresholds(options.workdir, chosen)
  except InputError as error:
    sys.exit(f"error: {error}")
  print(
    f"image threshold {chosen.image:.4f}, pixel threshold {chosen.pixel:.4f}:"
    f" {chosen.method}\nkept in {path}"
  )


if __name__ == "__main__":
  main()
