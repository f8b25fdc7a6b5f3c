"""CLIP's towers against transformers' Flax CLIP and the authors' code."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import FlaxCLIPModel

from cops_jax.backbones.clip import CLIP
from cops_jax.backbones.vision import (
  cast_matrices,
  normalize_images,
  resize_position_embedding,
)
from helpers import golden
from helpers.clip_config import make_clip_config
from helpers.golden import assert_close


@pytest.fixture(scope="module")
def stock():
  """Stock Flax CLIP with random parameters."""
  config = make_clip_config(
    *((32, 3, 4), (48, 4, 4), 32, 32, 8), vocab_size=50, eos_token_id=49
  )
  return FlaxCLIPModel(config, seed=1)


def encode(stock, images, **kwargs):
  return CLIP(stock.config).apply(
    {"params": stock.params}, images, method=CLIP.encode_images, **kwargs
  )


def random_images(batch=2, side=32):
  return jax.random.normal(jax.random.key(0), (batch, side, side, 3))


def test_features_without_a_value_path_match_stock_clip(stock):
  images = random_images()
  features, patches = encode(
    stock, images, feature_layers=(2, 4), num_value_layers=0
  )
  hidden = stock.module.apply(
    {"params": stock.params},
    images,
    method=lambda m, x: m.vision_model(x, output_hidden_states=True),
  )

  def project(x, is_normed):
    def apply(module, x):
      if is_normed:
        x = module.vision_model.post_layernorm(x)
      return module.visual_projection(x)

    return stock.module.apply({"params": stock.params}, x, method=apply)

  assert_close(features, project(hidden.last_hidden_state[:, 0], False))
  for index, layer in enumerate((2, 4)):
    want = project(hidden.hidden_states[layer][:, 1:], True)
    assert_close(patches[:, index], want)


def test_prompts_of_plain_words_match_stock_clip(stock):
  ids = jnp.array([[48, 3, 7, 9, 49], [48, 5, 2, 4, 49]], jnp.int32)
  backbone = CLIP(stock.config)
  variables = {"params": stock.params}
  embeddings = backbone.apply(variables, ids, method=CLIP.embed_tokens)
  features = backbone.apply(
    variables, [embeddings], jnp.zeros((0, 2, 32)), method=CLIP.encode_prompts
  )
  padded = jnp.pad(ids, ((0, 0), (0, 72)))
  assert_close(features, stock.get_text_features(padded))


@pytest.mark.parametrize("num_value_layers", (0, 2))
def test_features_do_not_depend_on_other_feature_layers(
  stock, num_value_layers
):
  """The last layer computes patches only if they are read."""
  images = random_images()
  options = dict(num_value_layers=num_value_layers)
  features, patches = encode(stock, images, feature_layers=(4,), **options)
  both, all_patches = encode(stock, images, feature_layers=(3, 4), **options)
  assert_close(features, both)
  assert_close(patches[:, 0], all_patches[:, 1])
  early, _ = encode(stock, images, feature_layers=(1,), **options)
  assert_close(early, features)


def test_casting_matrices_changes_no_bit_of_the_features(stock):
  backbone = CLIP(stock.config, dtype=jnp.bfloat16)
  cast = cast_matrices(stock.params, jnp.bfloat16)
  sizes = [
    sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    for params in (cast, stock.params)
  ]
  assert sizes[0] < 0.7 * sizes[1]
  found, want = (
    backbone.apply(
      {"params": params},
      random_images(),
      method=CLIP.encode_images,
      feature_layers=(4,),
      num_value_layers=2,
    )
    for params in (cast, stock.params)
  )
  chex.assert_trees_all_equal(found, want)


def test_resized_position_embedding_matches_the_authors():
  expected = golden.load("visa_recipe")["enc.position_embedding"]
  embedding = golden.backbone_params()["vision_model"]["embeddings"]
  table = embedding["position_embedding"]["embedding"]
  assert_close(resize_position_embedding(table, 7), expected)
  # The embedding of CLIP's own grid is returned unchanged.
  assert_close(resize_position_embedding(table, 4), table, 1e-7)


def test_position_embedding_of_a_smaller_grid_is_not_antialiased():
  table = np.random.default_rng(0).normal(size=(1 + 4 * 4, 3))
  blocks = table[1:].reshape(2, 2, 2, 2, 3)  # grid rows, rows, columns, c
  expected = np.vstack([table[:1], blocks.mean(axis=(1, 3)).reshape(-1, 3)])
  found = resize_position_embedding(jnp.asarray(table, jnp.float32), 2)
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_images_are_normalised_per_channel():
  images = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
  actual = normalize_images(
    jnp.asarray(images), CLIP.image_mean, CLIP.image_std
  )
  expected = [
    (0 - 0.48145466) / 0.26862954,
    (0.2 - 0.4578275) / 0.26130258,
    (1 - 0.40821073) / 0.27577711,
  ]
  np.testing.assert_allclose(actual.reshape(3), expected, rtol=1e-6)
