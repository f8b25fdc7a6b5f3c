"""Images per second of the input pipeline, compared with plain PIL.

Generated images of 1024 x 1024 pixels are decoded to 518 x 518 pixels. First,
plain PIL decodes one after the other. Then the pipeline decodes them with
threads only and with worker processes, with and without the class-aware
augmentation. The start of worker processes is not counted.
"""

from __future__ import annotations

import pathlib
import tempfile
import time
from collections.abc import Iterator

import numpy as np
from PIL import Image

from benchmarks.common import Row, write_images
from cops_jax import datasets
from cops_jax.inputs import pipeline
from cops_jax.inputs.augmentation import make_augmentation

_NUM_IMAGES = 64
_NUM_EPOCHS = 6
_IMAGE_SIZE, _PATCH_SIZE, _BATCH_SIZE = 518, 14, 8


def _plain_rate(examples):
  """Returns images per second of a PIL loop that does the same work."""
  size = (_IMAGE_SIZE, _IMAGE_SIZE)
  start = time.perf_counter()
  for example in examples:
    with Image.open(example["image"]) as image:
      np.asarray(image.resize(size, Image.Resampling.BICUBIC).convert("RGB"))
    if example["label"]:
      with Image.open(example["mask"]) as mask:
        mask = mask.convert("L").point(lambda value: 255 * (value > 0))
      np.greater(mask.resize(size, Image.Resampling.BILINEAR), 127)
  return len(examples) / (time.perf_counter() - start)


def _pipeline_rate(examples, num_workers, augmentation):
  """Returns the pipeline's images per second after the first epoch."""
  num_steps = pipeline.num_batches(len(examples), _BATCH_SIZE)
  options = pipeline.BatchOptions(
    image_size=_IMAGE_SIZE,
    patch_size=_PATCH_SIZE,
    batch_size=_BATCH_SIZE,
    num_workers=num_workers,
    shuffle_seed=0,
    augmentation=make_augmentation(augmentation, 0, examples),
  )
  batches = pipeline.iterate_batches(
    examples, options, range((1 + _NUM_EPOCHS) * num_steps)
  )
  for _ in range(num_steps):
    next(batches)
  start = time.perf_counter()
  number = sum(int(batch["padding_mask"].sum()) for batch in batches)
  return number / (time.perf_counter() - start)


def rows(is_quick: bool) -> Iterator[Row]:
  """Yields rows as they are measured."""
  with tempfile.TemporaryDirectory() as folder:
    write_images(pathlib.Path(folder), _NUM_IMAGES)
    examples = datasets.load(f"folder:{folder}", "test")
    plain = _plain_rate(examples)
    yield Row("plain PIL", note=f"{plain:.1f} images/s")
    for number in (0,) if is_quick else (0, 1, 2):
      what = f"pipeline, {number} workers"
      rate = _pipeline_rate(examples, number, "none")
      note = f"{rate:.1f} images/s, {rate / plain:.2f} times plain PIL"
      yield Row(what, note=note)
      augmented = _pipeline_rate(examples, number, "class_aware")
      ratio = f"{augmented / rate:.2f} of the rate without augmentation"
      note = f"{augmented:.1f} images/s, {ratio}"
      yield Row(f"{what}, augmented", note=note)
