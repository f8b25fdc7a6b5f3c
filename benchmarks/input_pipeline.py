"""Images per second of the input pipeline alone, against plain PIL.

  python -m benchmarks.input_pipeline

Generated photographs of 1024 x 1024 pixels, half PNG and half JPEG, half of
them with a mask, are decoded to 518 x 518: one after the other by plain PIL,
then by the pipeline with threads only and with worker processes. All of it is
measured in one run, each rate without the start of its processes.
"""

from __future__ import annotations

import pathlib
import tempfile
import time
from collections.abc import Iterator

import numpy as np
from PIL import Image

from benchmarks.timing import Row
from cops_jax import datasets
from cops_jax.inputs import pipeline

_NUM_IMAGES = 64
_NUM_EPOCHS = 6
_NUM_WORKERS = (0, 1, 2)
_BATCH_SIZE = 8
_IMAGE_SIZE, _PATCH_SIZE = 518, 14


def write_images(root: pathlib.Path) -> None:
  """Writes smooth noise, which compresses about as photographs do."""
  rng = np.random.default_rng(0)
  mask = np.zeros((1024, 1024), np.uint8)
  mask[100:300, 200:400] = 255
  for index in range(_NUM_IMAGES):
    kind = ("good", "crack")[index % 2]
    coarse = rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(mask.shape, Image.Resampling.BICUBIC)
    suffix = ("png", "jpg")[index // 2 % 2]
    path = root / "part" / "test" / kind / f"{index:03}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    if kind == "crack":
      path = root / "part" / "ground_truth" / kind / f"{index:03}_mask.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(mask).save(path)


def plain_rate(examples) -> float:
  """Of PIL called in a loop, with the same work on each image."""
  size = (_IMAGE_SIZE, _IMAGE_SIZE)
  start = time.monotonic()
  for example in examples:
    with Image.open(example["image"]) as image:
      np.asarray(image.resize(size, Image.Resampling.BICUBIC).convert("RGB"))
    if example["label"]:
      with Image.open(example["mask"]) as mask:
        mask = mask.convert("L").point(lambda value: 255 * (value > 0))
      np.asarray(mask.resize(size, Image.Resampling.BILINEAR)) > 127  # noqa: B015
  return len(examples) / (time.monotonic() - start)


def pipeline_rate(examples, num_workers: int) -> float:
  """Of batches for training, counted from the second epoch on."""
  epoch_steps = pipeline.num_batches(len(examples), _BATCH_SIZE)
  options = pipeline.BatchOptions(
    image_size=_IMAGE_SIZE,
    patch_size=_PATCH_SIZE,
    batch_size=_BATCH_SIZE,
    num_workers=num_workers,
    shuffle_seed=0,
  )
  batches = pipeline.iterate_batches(
    examples, options, range((1 + _NUM_EPOCHS) * epoch_steps)
  )
  for _ in range(epoch_steps):
    next(batches)
  start = time.monotonic()
  number = sum(int(batch["padding_mask"].sum()) for batch in batches)
  return number / (time.monotonic() - start)


def rows(is_quick: bool) -> Iterator[Row]:
  """Measures; rows come as they are ready."""
  num_workers = _NUM_WORKERS[: 1 if is_quick else None]
  with tempfile.TemporaryDirectory() as folder:
    write_images(pathlib.Path(folder))
    examples = datasets.load(f"folder:{folder}", "test")
    plain = plain_rate(examples)
    yield Row("plain PIL", note=f"{plain:.1f} images/s")
    for number in num_workers:
      rate = pipeline_rate(examples, number)
      note = f"{rate:.1f} images/s, {rate / plain:.2f} times plain PIL"
      yield Row(f"pipeline, {number} workers", note=note)


if __name__ == "__main__":
  from benchmarks.table import run

  run({"input pipeline": rows})
