"""The whole model against the authors' code, on random weights."""

import chex
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cops_jax import scoring
from cops_jax.models import cops

TOLERANCE = 1e-5


def assert_close(actual, expected, tolerance=TOLERANCE):
  """The largest difference over the largest entry."""
  actual, expected = np.asarray(actual), np.asarray(expected)
  chex.assert_equal_shape([actual, expected])
  error = np.abs(actual - expected).max() / np.abs(expected).max()
  assert error <= tolerance, f"relative error {error:.2e}"


@pytest.fixture(scope="module", params=golden.RECIPES)
def recipe(request):
  return request.param


@pytest.fixture(scope="module")
def expected(recipe):
  return golden.load(f"{recipe}_recipe")


@pytest.fixture(scope="module")
def variables():
  prompts = golden.trainable("prompt.", golden.load("weights"))
  return cops.join_params(prompts, golden.clip_params())


@pytest.fixture(scope="module")
def features(recipe, expected, variables):
  images = jnp.asarray(expected["in.image"], jnp.float32)
  return golden.model(recipe).apply(
    variables,
    images.transpose(0, 2, 3, 1),
    method=cops.CoPS.encode_images,
  )


def test_vision_features(expected, features):
  assert_close(features[0], expected["enc.image_features"])
  assert_close(features[1], expected["enc.patch_features"])


def test_training_outputs(recipe, expected, variables, features):
  noise = jnp.asarray(expected["in.train_noise"])[:, None]
  outputs = golden.model(recipe).apply(
    variables, *features, noise, is_training=True
  )
  names = {
    "prototypes": outputs.prototypes,
    "distance_normal": outputs.distances[:, 0],
    "distance_anomaly": outputs.distances[:, 1],
    "text_features": outputs.text_features,
    "patch_probability": outputs.patch_probability,
    "image_logits": outputs.image_logits,
    "vae_mean": outputs.code_mean,
    "vae_log_var": outputs.code_log_var,
    "category_bias": outputs.category_bias[:, 0],
  }
  for name, actual in names.items():
    want = expected[f"train.{name}"]
    if name == "prototypes":
      print(actual.shape, want.shape)
    assert_close(actual, want.reshape(actual.shape))
