"""Speed of training steps from cached features, compared with no cache.

The batch size is 1, to save memory, and the data set has two images. Each time
is the mean over the steps of an epoch, from image files to new parameters. The
first epoch is not counted.
"""

from __future__ import annotations

import pathlib
import tempfile
import time
from collections.abc import Iterator

import jax
import numpy as np

from benchmarks.common import Row, load, write_images
from cops_jax import datasets
from cops_jax.backbones.vision import sizes_of
from cops_jax.inputs import features, pipeline
from cops_jax.runtime.mesh import make_mesh, replicate, shard_batch
from cops_jax.training.step import (
  STEP_FIELDS,
  create_train_state,
  make_optimizer,
  make_train_step,
)
from cops_jax.weights.model import build_model, place_backbone

_RECIPES = ("visa", "anomalyclip_visa", "uniadet_visa")
_NUM_IMAGES = 2
_NUM_EPOCHS = {"none": 2, "bfloat16": 10}


def _step_seconds(config, backbone, examples):
  """Returns the mean seconds of a step in each epoch except the first."""
  mesh = make_mesh(jax.devices()[:1])
  model = build_model(config, backbone)
  cache = features.open_features(
    *(config, examples, "test", model, backbone, mesh), batch_size=1
  )
  optimizer = make_optimizer(config.train, num_steps=1)
  params = model.init_trainable(jax.random.key(0))
  state = replicate(create_train_state(params, optimizer), mesh)
  backbone_params, _ = place_backbone(backbone, model, mesh, is_split=False)
  step = make_train_step(model, optimizer, mesh)
  num_epochs = 1 + _NUM_EPOCHS[config.feature_cache.dtype]
  options = pipeline.BatchOptions(
    image_size=config.model.image_size_pixels,
    patch_size=sizes_of(backbone.config).patch_size,
    batch_size=1,
    shuffle_seed=0,
    example_ids=model.needs_noise,
    full_masks=model.needs_masks,
  )
  batches = pipeline.iterate_batches(
    examples, options, range(num_epochs * _NUM_IMAGES), features=cache
  )
  seconds = []
  for _ in range(num_epochs):
    start = time.perf_counter()
    for _ in range(_NUM_IMAGES):
      batch = shard_batch(next(batches), mesh, STEP_FIELDS)
      state, terms = step(state, backbone_params, batch)
      assert np.isfinite(terms["loss"])
    seconds.append((time.perf_counter() - start) / _NUM_IMAGES)
  return np.array(seconds[1:])


def rows(is_quick: bool) -> Iterator[Row]:
  """Yields rows as they are measured."""
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    write_images(root / "images", _NUM_IMAGES)
    examples = datasets.load(f"folder:{root}/images", "test")
    for name in ("demo",) if is_quick else _RECIPES:
      config, backbone = load(name)
      config.features_dir = str(root)
      # An augmented image has no cached features.
      config.train.augmentation = "none"
      plain = None
      for dtype in _NUM_EPOCHS:
        config.feature_cache.dtype = dtype
        seconds = _step_seconds(config, backbone, examples)
        note = ""
        if plain is not None:
          note = f"{np.median(plain) / np.median(seconds):.1f} times as fast"
        plain = seconds if plain is None else plain
        what = f"{name}: training step of 1 image, feature cache {dtype}"
        yield Row(what, seconds, note)
