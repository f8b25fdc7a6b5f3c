"""Smoothing and distances against scipy and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from cops_jax.models.similarity import prototype_distances, smooth_patches
from helpers.golden import assert_close


@pytest.mark.parametrize("window", (1, 3, 5))
def test_smoothing_counts_padding(window):
  patches = jax.random.normal(jax.random.key(0), (2, 2, 16, 3))
  actual = smooth_patches(patches, window)
  want = scipy.ndimage.uniform_filter(
    np.asarray(patches, np.float64).reshape(2, 2, 4, 4, 3),
    size=(1, 1, window, window, 1),
    mode="constant",
  )
  assert_close(actual, want.reshape(patches.shape), 1e-6)


def test_prototype_distance_takes_the_nearest():
  patches = jnp.array([[[2.0, 0.0]]])
  prototypes = jnp.array(
    [[[[0.0, 1.0], [3.0, 0.0]], [[-1.0, 0.0], [0.0, 5.0]]]]
  )
  np.testing.assert_allclose(
    prototype_distances(patches, prototypes), [[[0.0], [1.0]]]
  )
