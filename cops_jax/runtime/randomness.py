"""Random numbers: a key for each purpose, noise for each example."""

from __future__ import annotations

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from cops_jax.typing import Array, Float, Integer

# Purposes of random numbers, which decide beside the seed.
INIT_KEY, TRAIN_KEY, EVALUATION_KEY = range(3)


def random_key(seed: int, purpose: int) -> jax.Array:
  """The key of one purpose; keys of other purposes are independent."""
  return jax.random.fold_in(jax.random.key(seed), purpose)


def hash_example_id(dataset: str, example_id: str) -> np.uint32:
  """Returns the number that keys an example's noise in training."""
  digest = hashlib.sha256(f"{dataset}/{example_id}".encode()).digest()
  return np.uint32(int.from_bytes(digest[:4], "little"))


def example_noise(
  key: jax.Array, example_ids: Integer[Array, "b"], width: int
) -> Float[Array, "b z=1 d"]:
  """Returns standard normal noise, keyed by the key and each example's id.

  So it does not change with the batch or the device of an example.
  """

  def draw(example_id):
    return jax.random.normal(
      jax.random.fold_in(key, example_id), (1, width), jnp.float32
    )

  return jax.vmap(draw)(example_ids)
