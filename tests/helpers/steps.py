"""What a training step is tried with."""

from types import SimpleNamespace

import numpy as np

from cops_jax.training.step import make_optimizer


def make_adam(accumulate_steps=1):
  settings = SimpleNamespace(
    learning_rate=1e-3,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    accumulate_steps=accumulate_steps,
  )
  return make_optimizer(settings)


def tiny_batch(size, padded_size):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (padded_size, 28, 28, 3), dtype=np.uint8)
  return {
    "image": images,
    "mask_counts": rng.integers(0, 3, (padded_size, 4)).astype(np.int32),
    "label": rng.integers(0, 2, padded_size).astype(np.int32),
    "example_id": np.arange(padded_size, dtype=np.uint32),
    "padding_mask": np.arange(padded_size) < size,
  }
