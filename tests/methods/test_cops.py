"""CoPS against stored numbers of the authors' code, with random weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cops_jax import config as configuration
from cops_jax import scoring
from cops_jax.backbones.features import encode_batch, encode_images, join_params
from cops_jax.evaluation.step import detect_anomalies
from cops_jax.weights.clip import OPENAI_TOKENS, PretrainedCLIP
from cops_jax.weights.clip_names import clip_param_shapes
from cops_jax.weights.model import build_model
from helpers import golden
from helpers.clip_config import make_clip_config
from helpers.golden import assert_close


@pytest.fixture(scope="module", params=golden.RECIPES)
def recipe(request):
  return request.param


@pytest.fixture(scope="module")
def expected(recipe):
  return golden.load(f"{recipe}_recipe")


@pytest.fixture(scope="module")
def features(recipe):
  return encode(golden.model(recipe), recipe)


@pytest.fixture(scope="module")
def visa_features():
  return encode(golden.model("visa"), "visa")


def encode(model, recipe):
  encode = jax.jit(functools.partial(encode_images, model))
  return encode(golden.backbone_params(), golden.images(recipe))


def test_vision_features_match_the_authors(expected, features):
  assert_close(features[0], expected["enc.image_features"])
  assert_close(features[1], expected["enc.patch_features"])


def test_training_outputs_match_the_authors(recipe, expected):
  # This test reads the stored features, because a cosine near 0 has ten times
  # the relative error of the features.
  features = [
    jnp.asarray(expected[f"enc.{name}_features"]) for name in ("image", "patch")
  ]
  noise = jnp.asarray(expected["in.train_noise"])[:, None]
  apply = functools.partial(golden.model(recipe).apply, is_training=True)
  outputs = jax.jit(apply)(golden.variables(), *features, noise)
  actual = {
    "prototypes": outputs.prototypes,
    "distance_normal": outputs.distances[:, scoring.NORMAL],
    "distance_anomaly": outputs.distances[:, scoring.ANOMALY],
    "text_features": outputs.text_features,
    "patch_probability": outputs.patch_probability,
    "image_logits": outputs.image_logits,
    "vae_mean": outputs.code_mean,
    "vae_log_var": outputs.code_log_var,
    "category_bias": outputs.category_bias[:, 0],
  }
  for name, value in actual.items():
    assert_close(value, expected[f"train.{name}"])


def test_evaluation_outputs_match_the_authors(recipe, expected, features):
  model, noise = golden.model(recipe), jnp.asarray(expected["in.eval_noise"])
  noise = noise.transpose(1, 0, 2)
  apply = functools.partial(model.apply, is_training=False)
  outputs = jax.jit(apply)(golden.variables(), *features, noise)
  alpha = model.config.evaluation.alpha
  patch_scores = scoring.weighted_patch_scores(
    outputs.patch_probability, outputs.distances, alpha
  )
  probability = jax.nn.softmax(outputs.image_logits)[:, scoring.ANOMALY]
  batch = dict(zip(("image_features", "patch_features"), features, strict=True))
  detect = jax.jit(functools.partial(detect_anomalies, model))
  detected = detect(golden.variables(), batch | {"noise": noise})
  actual = {
    "prototypes": outputs.prototypes,
    "text_features": outputs.text_features,
    "patch_probability": outputs.patch_probability[:, 0],
    "distance_normal": outputs.distances[:, scoring.NORMAL],
    "distance_anomaly": outputs.distances[:, scoring.ANOMALY],
    "weight": scoring.distance_weight(outputs.distances, alpha),
    "patch_score": patch_scores.max(axis=-1),
    "image_probability": probability,
    **detected,
  }
  for name, value in actual.items():
    assert_close(value, expected[f"eval.{name}"])


def test_features_in_bfloat16_are_close_to_those_in_float32(visa_features):
  """On accelerators CLIP computes in bfloat16 and returns float32 features."""
  model = golden.model("visa")
  model = model.clone(backbone=model.backbone.clone(dtype=jnp.bfloat16))
  for low, full in zip(encode(model, "visa"), visa_features, strict=True):
    assert low.dtype == jnp.float32
    assert_close(low, full, 0.03)


def apply(features, fields=None, params=None, is_training=False):
  params = params or golden.variables()["params"]
  noise = jnp.ones((len(features[0]), 1, features[0].shape[-1]))
  model = golden.model("visa", fields)
  apply = functools.partial(model.apply, is_training=is_training)
  return jax.jit(apply)({"params": params}, *features, noise)


def test_crossed_injection_swaps_the_states(visa_features):
  """Swapped queries with "matched" equal the stored queries with "crossed"."""
  params = dict(golden.variables()["params"])
  extractor = dict(params["prototype_extractor"])
  extractor["queries"] = extractor["queries"][::-1]
  params["prototype_extractor"] = extractor
  matched = {"model.prototype_injection": "matched"}
  crossed = apply(visa_features).text_features
  swapped = apply(visa_features, matched, params).text_features
  assert_close(swapped, crossed, 1e-6)
  other = apply(visa_features, matched).text_features
  assert jnp.abs(other - crossed).max() > 1e-4


def test_text_features_do_not_train_the_extractor(visa_features):
  params = golden.variables()["params"]

  def text(extractor):
    changed = {**params, "prototype_extractor": extractor}
    outputs = apply(visa_features, params=changed, is_training=True)
    return outputs.text_features[..., 0].sum()

  gradient = jax.grad(text)(params["prototype_extractor"])
  assert all(not leaf.any() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("state", (True, False))
@pytest.mark.parametrize("category", (True, False))
def test_words_depend_only_on_their_features(visa_features, state, category):
  """State words depend on patches, and category words on the image feature."""
  params, fields = dict(golden.variables()["params"]), {}
  context = params["prompt_learner"]["context"]
  kept = [context[:, :6], context[:, 6:12], context[:, 12:]]
  if not category:
    fields["model.num_category_words"] = 0
    del kept[2], params["category_vae"]
  if not state:
    fields["model.num_state_words"] = 0
    del kept[1], params["prototype_extractor"]
  words = {"context": jnp.concatenate(kept, axis=1)}
  params["prompt_learner"] = params["prompt_learner"] | words
  outputs = apply(visa_features, fields, params, is_training=True)
  assert (outputs.prototypes is not None) == state
  assert (outputs.distances is not None) == state
  assert (outputs.category_bias is not None) == category
  assert (outputs.code_mean is not None) == category
  texts = outputs.text_features
  assert texts.shape == (2 if state or category else 1, 2, 192)
  assert jnp.abs(texts[:, 0] - texts[:, 1]).max() > 1e-4
  for index, matters in enumerate((category, state)):
    other = list(visa_features)
    other[index] = jnp.roll(other[index], 1, axis=0)
    other = apply(other, fields, params, is_training=True).text_features
    assert (jnp.abs(other - texts).max() > 1e-4) == matters
    assert matters or jnp.abs(other - texts).max() < 1e-6


PUBLISHED_SIZES = {
  # Patch, image, vision width, layers, text width, and number of parameters.
  "ViT-B/16": (16, 224, 768, 12, 512, 149_620_737),
  "ViT-L/14@336": (14, 336, 1024, 24, 768, 427_944_193),
}


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_shapes_of_published_sizes(name):
  """OpenAI's models run on 37 x 37 patches; nothing is computed."""
  patch, image, width, layers, joint, number = PUBLISHED_SIZES[name]
  sizes = make_clip_config(
    (joint, 12, joint // 64),
    (width, layers, width // 64),
    *(joint, image, patch),
    mlp_ratio=4,
  )
  backbone_params = clip_param_shapes(sizes)
  backbone = PretrainedCLIP(sizes, backbone_params, OPENAI_TOKENS, "")
  config = configuration.recipe("visa")
  config.backbone.dtype = "bfloat16"
  config.model.image_size_pixels = 37 * patch
  config.model.feature_layers = (layers // 2, layers)
  config.model.num_value_layers = layers - 2
  config.model.num_heads = 8 if joint == 512 else 12
  model = build_model(config, backbone)
  trainable = jax.eval_shape(lambda: model.init_trainable(jax.random.key(0)))

  def forward(trainable, backbone_params, image, noise):
    variables = join_params(trainable, backbone_params)
    features = encode_batch(model, backbone_params, {"image": image})
    return model.apply(variables, *features, noise, is_training=False)

  outputs = jax.eval_shape(
    forward,
    trainable,
    backbone_params,
    jax.ShapeDtypeStruct((2, 37 * patch, 37 * patch, 3), np.uint8),
    jax.ShapeDtypeStruct((2, 10, joint), jnp.float32),
  )
  assert outputs.patch_probability.shape == (2, 2, 1369, 2)
  assert outputs.text_features.shape == (2, 2, joint)
  assert outputs.prototypes.shape == (2, 2, 6, joint)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(outputs))
  assert sum(leaf.size for leaf in jax.tree.leaves(backbone_params)) == number
