"""Random keys for each purpose, and random noise for each example."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cops_jax.files import digest_file
from cops_jax.typing import Array, Float, Integer

# Purposes of random numbers. A key depends on the seed and a purpose.
INIT_KEY, TRAIN_KEY, AUGMENTATION_KEY = range(3)


def random_key(seed: int, purpose: int) -> jax.Array:
  """Returns the key of one purpose, independent of those of other purposes."""
  return jax.random.fold_in(jax.random.key(seed), purpose)


def hash_example(example: Mapping[str, Any]) -> np.uint32:
  """Returns the number that keys an example's noise in training.

  The number is a hash of the data set and id of a prepared image, or of the
  contents and relative path of a file, so a folder can be renamed or moved.
  """
  scope = example["dataset"]
  if not isinstance(example["image"], bytes):
    scope = digest_file(example["image"], may_remember=True)
  digest = hashlib.sha256(f"{scope}/{example['id']}".encode()).digest()
  return np.uint32(int.from_bytes(digest[:4], "little"))


def example_noise(
  key: jax.Array, example_ids: Integer[Array, "b"], width: int
) -> Float[Array, "b z=1 d"]:
  """Returns standard normal noise that depends only on the key and example.

  The noise does not depend on the batch or the device.
  """

  def draw(example_id):
    return jax.random.normal(
      jax.random.fold_in(key, example_id), (1, width), jnp.float32
    )

  return jax.vmap(draw)(example_ids)
