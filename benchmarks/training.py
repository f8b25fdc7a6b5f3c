"""An epoch of training from cached features, against one without a cache.

  python -m benchmarks.training

ViT-L/14@336 at 518 x 518 pixels with random weights and the published recipe's
config, except for a batch of 1 image, to save memory; with --quick the demo's.
The data set has two images, so an epoch is two steps, from image files to new
parameters. Compiled and timed in one process: a first epoch, not counted, and
then whole epochs, without the cache and with it.
"""

from __future__ import annotations

import pathlib
import tempfile
import time
from collections.abc import Iterator

import jax
import numpy as np
from PIL import Image

from benchmarks.timing import Row, row
from benchmarks.vit_l import random_clip
from cops_jax import datasets
from cops_jax.config import recipe
from cops_jax.inputs import features, pipeline
from cops_jax.runtime.mesh import make_mesh, replicate, shard_batch
from cops_jax.training.step import (
  STEP_FIELDS,
  create_train_state,
  make_optimizer,
  make_train_step,
)
from cops_jax.weights import build_model, load_clip, place_clip, settle_dtype

_NUM_IMAGES = 2
_NUM_EPOCHS = {"none": 2, "bfloat16": 10}


def write_images(root: pathlib.Path) -> None:
  """Writes smooth noise of 1024 x 1024 pixels, one with a mask."""
  rng = np.random.default_rng(0)
  for index in range(_NUM_IMAGES):
    kind = ("good", "crack")[index % 2]
    coarse = rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)
    path = root / "part" / "test" / kind / f"{index:03}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((1024, 1024)).save(path)
    if kind == "crack":
      mask = np.zeros((1024, 1024), np.uint8)
      mask[100:300, 200:400] = 255
      path = root / "part" / "ground_truth" / kind / f"{index:03}_mask.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(mask).save(path)


def epoch_seconds(config, clip, examples, folder, dtype) -> np.ndarray:
  """Times epochs of training, all but the first."""
  mesh = make_mesh()
  model = build_model(config, clip)
  settings = config.train
  config = config.copy_and_resolve_references()
  config.feature_cache.dtype = dtype
  config.features_dir = str(folder)
  cache = features.open_features(
    config,
    examples,
    "test",
    model,
    clip,
    mesh,
    batch_size=settings.batch_size,
  )
  optimizer = make_optimizer(settings, num_steps=1)
  params = model.init_trainable(jax.random.key(config.seed))
  state = replicate(create_train_state(params, optimizer), mesh)
  clip_params, _ = place_clip(clip, model, mesh, is_split=False)
  step = make_train_step(model, optimizer, mesh)
  num_epochs = 1 + _NUM_EPOCHS[dtype]
  options = pipeline.BatchOptions(
    image_size=config.model.image_size_pixels,
    patch_size=clip.config.vision_config.patch_size,
    batch_size=settings.batch_size,
    shuffle_seed=config.seed,
  )
  batches = pipeline.iterate_batches(
    examples, options, range(num_epochs * _NUM_IMAGES), features=cache
  )
  seconds = []
  for _ in range(num_epochs):
    start = time.monotonic()
    for _ in range(_NUM_IMAGES):
      batch = next(batches)
      batch = shard_batch(batch, mesh, STEP_FIELDS)
      state, terms = step(state, clip_params, batch)
      assert np.isfinite(terms["loss"])
    seconds.append(time.monotonic() - start)
  return np.array(seconds[1:])


def rows(is_quick: bool) -> Iterator[Row]:
  """Measures; rows come as they are ready."""
  config = settle_dtype(recipe("demo" if is_quick else "visa"), None)
  config.train.batch_size = 1
  clip = load_clip("demo") if is_quick else random_clip()
  plain = None
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    write_images(root / "images")
    examples = datasets.load(f"folder:{root}/images", "test")
    for dtype in _NUM_EPOCHS:
      seconds = epoch_seconds(config, clip, examples, root, dtype)
      seconds /= _NUM_IMAGES
      note = ""
      if plain is None:
        plain = np.median(seconds)
      else:
        note = f"{plain / np.median(seconds):.1f} times as fast"
      yield row(
        f"training step of 1 image, feature cache {dtype}", seconds, note
      )


if __name__ == "__main__":
  from benchmarks.table import run

  run({"training": rows})
