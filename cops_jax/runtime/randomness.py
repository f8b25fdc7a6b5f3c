"""Random numbers: a key for each purpose, noise for each example."""

from __future__ import annotations

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from cops_jax.typing import Array, Float, Integer

# Purposes of random numbers, folded into the seed's key.
INIT_KEY, TRAIN_KEY, EVALUATION_KEY = range(3)


def random_key(seed: int, purpose: int) -> jax.Array:
  """The key of one purpose; keys of other purposes are independent."""
  return jax.random.fold_in(jax.random.key(seed), purpose)


def hash_example_id(dataset: str, example_id: str) -> np.uint32:
  """The number that keys an example's noise."""
  digest = hashlib.sha256(f"{dataset}/{example_id}".encode()).digest()
  return np.uint32(int.from_bytes(digest[:4], "little"))


def example_noise(
  key: jax.Array, example_ids: Integer[Array, "b"], num_samples: int, width: int
) -> Float[Array, "b z d"]:
  """Standard normal noise that depends on the key and each example's id alone.

  So a sample does not change with the batch it comes in or the device it is on.
  """

  def draw(example_id):
    return jax.random.normal(
      jax.random.fold_in(key, example_id), (num_samples, width), jnp.float32
    )

  return jax.vmap(draw)(example_ids)


def content_ids(images: Integer[Array, "b h w 3"]) -> Integer[Array, "b"]:
  """Ids for `example_noise` that the pixels of uint8 images determine."""
  pixels = images.reshape(images.shape[0], -1).astype(jnp.uint32)
  # Multiplicative hashing: an odd multiplier for each place, then the high bits
  # are mixed into the low ones. All of it wraps at 2**32.
  multipliers = jnp.arange(pixels.shape[1], dtype=jnp.uint32)
  multipliers = multipliers * jnp.uint32(0x9E3779B2) + jnp.uint32(1)
  mixed = (pixels + jnp.uint32(1)) * multipliers[None]
  mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x2C1B3C6D)
  return (mixed ^ (mixed >> 13)).sum(axis=1, dtype=jnp.uint32)
