"""Losses on patch counts against their definitions on pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cops_jax import losses
from helpers.golden import assert_close

PATCH, GRID, BATCH = 4, 3, 2


@pytest.fixture(scope="module")
def case():
  rng = np.random.default_rng(0)
  mask = (rng.random((BATCH, PATCH * GRID, PATCH * GRID)) > 0.7).astype(
    np.uint8
  )
  mask[0, :PATCH] = 0
  counts = np.stack([losses.count_mask_pixels(image, PATCH) for image in mask])
  anomaly = rng.random((BATCH, GRID**2))
  probability = np.stack([1 - anomaly, anomaly], axis=-1)
  return mask, counts, probability


def on_pixels(patches):
  grid = patches.reshape(BATCH, GRID, GRID)
  return grid.repeat(PATCH, axis=1).repeat(PATCH, axis=2)


def no_padding(batch=BATCH):
  return jnp.ones(batch, bool)


def test_focal_loss_on_counts_equals_that_on_pixels(case):
  mask, counts, probability = case
  normal, anomaly = (on_pixels(probability[..., state]) for state in (0, 1))
  one_hot = np.clip(np.stack([1 - mask, mask], -1), 1e-5, 1 - 1e-5)
  pt = (one_hot * np.stack([normal, anomaly], -1)).sum(-1) + 1e-5
  want = np.mean(-((1 - pt) ** 2) * np.log(pt))
  actual = losses.focal_loss(
    jnp.asarray(probability, jnp.float32),
    jnp.asarray(counts, jnp.int32),
    PATCH**2,
    no_padding(),
  )
  assert_close(actual, want)


def test_gather_reads_mask_free_and_scatter_masked_patches():
  distances = jnp.array([[[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]]])
  counts = jnp.array([[0, 3, 0]])
  assert losses.gather_loss(distances, counts, no_padding(1)) == 2.5
  assert losses.scatter_loss(distances, counts, no_padding(1)) == 16.0
  none = jnp.zeros((1, 3), jnp.int32)
  value, gradient = jax.value_and_grad(losses.scatter_loss)(
    distances, none, no_padding(1)
  )
  assert value == 0 and not gradient.any()


def test_reconstruction_compares_pairs_or_own_biases_or_nothing():
  features = jnp.array([[0.0], [1.0]])
  biases = jnp.array([[1.0], [3.0]])

  def loss(mode):
    return losses.reconstruction_loss(features, biases, no_padding(), mode)

  # All pairs are (0, 1), (0, 3), (1, 1), (1, 3); matched: (0, 1), (1, 3).
  assert loss("pairwise") == (1 + 9 + 0 + 4) / 4
  assert loss("matched") == (1 + 4) / 2
  assert loss("none") == 0


def test_padding_does_not_change_any_loss(case):
  """The losses of an image are the same with and without a padding image."""
  _, counts, probability = case
  rng = np.random.default_rng(1)
  first, second = rng.normal(size=(2, BATCH, 5)).astype(np.float32)
  arrays = (
    probability.astype(np.float32),
    counts,
    rng.random((BATCH, 2, GRID**2)).astype(np.float32),
    first,
    second,
    np.array([1, 0], np.int32),
  )

  def every_loss(arrays, mask):
    p, c, d, x, y, label = map(jnp.asarray, arrays)
    return [
      losses.image_loss(x[:, :2], label, mask),
      losses.patch_loss(p[:, None], c, PATCH**2, mask),
      losses.gather_loss(d, c, mask),
      losses.scatter_loss(d, c, mask),
      losses.kl_loss(x, y, mask),
      losses.reconstruction_loss(x, y, mask, "pairwise"),
      losses.reconstruction_loss(x, y, mask, "matched"),
    ]

  padded = every_loss(arrays, jnp.array([False, True]))
  alone = every_loss([array[1:] for array in arrays], no_padding(1))
  for actual, want in zip(padded, alone, strict=True):
    np.testing.assert_allclose(actual, want, rtol=1e-6)
