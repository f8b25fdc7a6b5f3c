"""Scoring functions against scipy and JAX, and edge cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from cops_jax import scoring
from helpers.golden import assert_close


@pytest.mark.parametrize("image_size, grid_size", ((112, 14), (98, 7), (24, 3)))
def test_nearest_anomaly_map_matches_scipy(image_size, grid_size):
  """The smallest image is narrower than the filter."""
  scores = np.random.default_rng(0).random((2, grid_size**2), np.float32)
  maps = scoring.anomaly_maps(jnp.asarray(scores), image_size, "nearest", 4.0)
  patch = image_size // grid_size
  for actual, row in zip(maps, scores, strict=True):
    grid = row.reshape(grid_size, grid_size)
    blocks = np.kron(grid, np.ones((patch, patch)))
    assert_close(actual, scipy.ndimage.gaussian_filter(blocks, sigma=4), 1e-6)


@pytest.mark.parametrize("image_size, grid_size", ((112, 14), (98, 7), (24, 3)))
def test_bilinear_anomaly_map_matches_jax_and_scipy(image_size, grid_size):
  """JAX upsamples with half-pixel centres and clamped edges."""
  patches = np.random.default_rng(0).random((2, 1, grid_size**2, 2), np.float32)
  pixels = scoring.upsample(jnp.asarray(patches), image_size)
  want = jax.image.resize(
    patches.reshape(2, grid_size, grid_size, 2),
    (2, image_size, image_size, 2),
    "bilinear",
    antialias=False,
  )
  assert_close(pixels.reshape(want.shape), want, 1e-6)
  for sigma in (0.0, 1.3, 4.0):
    maps = scoring.anomaly_maps(
      jnp.asarray(patches[:, 0, :, 1]), image_size, "bilinear", sigma
    )
    for actual, expected in zip(maps, want[..., 1], strict=True):
      expected = scipy.ndimage.gaussian_filter(np.asarray(expected), sigma)
      assert_close(actual, expected, 2e-6)


def test_min_max_scale_maps_a_constant_row_to_0():
  rows = jnp.array([[1.0, 3.0, 2.0], [4.0, 4.0, 4.0]])
  np.testing.assert_array_equal(
    scoring.min_max_scale(rows), [[0, 1, 0.5], [0, 0, 0]]
  )


def test_a_patch_score_without_distances_is_the_probability():
  probability = jnp.array([[[[0.8, 0.2], [0.1, 0.9]]]])
  scores = scoring.weighted_patch_scores(probability, None, alpha=0.3)
  np.testing.assert_array_equal(scores, probability[:, 0, :, scoring.ANOMALY])


@pytest.mark.parametrize("window", (1, 3, 5))
def test_smoothing_divides_by_the_whole_window_at_the_edges(window):
  patches = jax.random.normal(jax.random.key(0), (2, 2, 16, 3))
  actual = scoring.smooth_patches(patches, window)
  want = scipy.ndimage.uniform_filter(
    np.asarray(patches, np.float64).reshape(2, 2, 4, 4, 3),
    size=(1, 1, window, window, 1),
    mode="constant",
  )
  assert_close(actual, want.reshape(patches.shape), 1e-6)


def test_scores_with_reference_images_are_fused():
  """Half of the image score is then the largest fused patch score."""
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(3, 2)), rng.normal(size=(3, 2, 4, 2))
  distances = rng.random((3, 4))
  images, patches = scoring.probabilities(*map(jnp.asarray, logits))
  found = scoring.probabilities(*map(jnp.asarray, (*logits, distances)), 0.2)
  assert_close(found[1], 0.8 * patches + 0.2 * distances)
  assert_close(found[0], 0.5 * images + 0.5 * found[1].max(axis=1))


def test_distances_to_reference_images_are_between_0_and_1():
  rng = np.random.default_rng(0)
  patches = jnp.asarray(rng.normal(size=(2, 3, 4, 5)), jnp.float32)
  memory = scoring.make_memory(patches[:1])
  assert memory.shape == (3, 4, 5)
  found = scoring.memory_distances(
    jnp.concatenate([3 * patches, -patches[:1, :, :1].repeat(4, 2)]),
    memory[:, :1],
  )
  assert found.min() == 0 or found.min() < 1e-6
  assert found[2].max() == 1
