"""Random numbers: a key for each purpose, noise for each example."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cops_jax.files import digest_file
from cops_jax.typing import Array, Float, Integer

# Purposes of random numbers, which keys have beside the seed.
INIT_KEY, TRAIN_KEY, AUGMENTATION_KEY = range(3)


def random_key(seed: int, purpose: int) -> jax.Array:
  """The key of one purpose; keys of other purposes are independent."""
  return jax.random.fold_in(jax.random.key(seed), purpose)


def hash_example(example: Mapping[str, Any]) -> np.uint32:
  """Returns the number that keys an example's noise in training.

  It is that of a prepared image's data set and id, or of a file's content and
  path. So training on a folder of any name and in any place is the same.
  """
  scope = example["dataset"]
  if not isinstance(example["image"], bytes):
    scope = digest_file(example["image"], may_remember=True)
  digest = hashlib.sha256(f"{scope}/{example['id']}".encode()).digest()
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
