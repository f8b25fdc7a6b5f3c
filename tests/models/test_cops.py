"""The whole model against the authors' code, on random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import CLIPConfig

from cops_jax import scoring, weights
from cops_jax.models import cops, encoding
from cops_jax.runtime.mesh import jit_step, make_mesh
from helpers import golden
from helpers.golden import assert_close


@pytest.fixture(scope="module", params=golden.RECIPES)
def recipe(request):
  return request.param


@pytest.fixture(scope="module")
def expected(recipe):
  return golden.load(f"{recipe}_recipe")


@pytest.fixture(scope="module")
def features(recipe):
  return golden.model(recipe).apply(
    golden.variables(), golden.images(recipe), method=encoding.encode_images
  )


def test_vision_features(expected, features):
  assert_close(features[0], expected["enc.image_features"])
  assert_close(features[1], expected["enc.patch_features"])


def test_training_outputs(recipe, expected):
  # The stored features: a cosine near 0 has ten times the relative error of
  # the features it is made of.
  features = [
    jnp.asarray(expected[f"enc.{name}_features"]) for name in ("image", "patch")
  ]
  noise = jnp.asarray(expected["in.train_noise"])[:, None]
  outputs = golden.model(recipe).apply(
    golden.variables(), *features, noise, is_training=True
  )
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


def test_evaluation_outputs(recipe, expected, features):
  settings = golden.SETTINGS[recipe]
  noise = jnp.asarray(expected["in.eval_noise"]).transpose(1, 0, 2)
  outputs = golden.model(recipe).apply(
    golden.variables(), *features, noise, is_training=False
  )
  patch_scores = scoring.weighted_patch_scores(
    outputs.patch_probability, outputs.distances, settings["alpha"]
  )
  actual = {
    "prototypes": outputs.prototypes,
    "text_features": outputs.text_features,
    "patch_probability": outputs.patch_probability[:, 0],
    "distance_normal": outputs.distances[:, scoring.NORMAL],
    "distance_anomaly": outputs.distances[:, scoring.ANOMALY],
    "weight": scoring.distance_weight(outputs.distances, settings["alpha"]),
    "anomaly_map": scoring.anomaly_maps(patch_scores, 98, "nearest"),
    "patch_score": patch_scores.max(axis=-1),
    "image_probability": jax.nn.softmax(outputs.image_logits)[
      :, scoring.ANOMALY
    ],
    "image_score": scoring.image_scores(
      outputs.image_logits, patch_scores, settings["beta"]
    ),
  }
  for name, value in actual.items():
    assert_close(value, expected[f"eval.{name}"])


@pytest.mark.parametrize("num_devices", (1, 2))
def test_a_batch_takes_no_more_memory_than_an_image(num_devices):
  """On CPU, on each device."""
  model, variables = golden.model("visa"), golden.variables()
  mesh = make_mesh(jax.devices()[:num_devices])

  def encode(clip_params, batch):
    return encoding.encode_batch(
      model, encoding.join_params({}, clip_params), batch
    )

  encode = jit_step(encode, mesh, num_replicated=0)
  clip_params = variables["params"]["clip"]
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (8, 98, 98, 3), dtype=np.uint8)

  def compiled(number):
    batch = {"image": images[:number]}
    return encode.lower(clip_params, batch).compile()

  one, many = (compiled(number * num_devices) for number in (1, 4))
  memory, bound = (
    step.memory_analysis().temp_size_in_bytes for step in (many, one)
  )
  assert memory < 1.5 * bound
  found = many(clip_params, {"image": images[: 4 * num_devices]})
  for row in range(0, 4 * num_devices, num_devices):
    batch = {"image": images[row : row + num_devices]}
    for all_rows, rows in zip(found, one(clip_params, batch), strict=True):
      assert_close(all_rows[row : row + num_devices], rows, 1e-6)


def test_half_precision_is_close(recipe, features):
  """CLIP in bfloat16 as on accelerators; what comes out of it is float32."""
  half = golden.model(recipe).clone(dtype=jnp.bfloat16)
  actual = half.apply(
    golden.variables(), golden.images(recipe), method=encoding.encode_images
  )
  for low, full in zip(actual, features, strict=True):
    assert low.dtype == jnp.float32
    assert_close(low, full, 0.03)


def test_injection_modes_swap_the_states(features):
  """ "matched" on swapped queries is "crossed" on the stored ones."""
  variables = golden.variables()
  params = dict(variables["params"])
  extractor = dict(params["prototype_extractor"])
  extractor["queries"] = extractor["queries"][::-1]
  params["prototype_extractor"] = extractor
  noise = jnp.zeros((len(features[0]), 1, features[0].shape[-1]))
  model = golden.model("visa")
  crossed = model.apply(variables, *features, noise, is_training=False)
  matched = model.clone(prototype_injection="matched").apply(
    {"params": params}, *features, noise, is_training=False
  )
  assert_close(matched.text_features, crossed.text_features, 1e-6)
  same = model.clone(prototype_injection="matched").apply(
    variables, *features, noise, is_training=False
  )
  assert jnp.abs(same.text_features - crossed.text_features).max() > 1e-4


def test_text_features_do_not_train_the_extractor(features):
  model, variables = golden.model("visa"), golden.variables()
  noise = jnp.zeros((len(features[0]), 1, features[0].shape[-1]))

  def text(extractor):
    params = {**variables["params"], "prototype_extractor": extractor}
    outputs = model.apply(
      {"params": params}, *features, noise, is_training=True
    )
    return outputs.text_features[..., 0].sum()

  gradient = jax.grad(text)(variables["params"]["prototype_extractor"])
  assert all(not leaf.any() for leaf in jax.tree.leaves(gradient))


def apply_without(features, *, state=False, category=False):
  """The model without one or both kinds of words, or any parameters of them."""
  words = {"num_state_words": 0} if state else {}
  words |= {"num_category_words": 0} if category else {}
  params = dict(golden.variables()["params"])
  context = params["prompt_learner"]["context"]
  kept = [context[:, :6], context[:, 6:12], context[:, 12:]]
  if category:
    del kept[2], params["category_vae"]
  if state:
    del kept[1], params["prototype_extractor"]
  params["prompt_learner"] = {
    **params["prompt_learner"],
    "context": jnp.concatenate(kept, axis=1),
  }
  noise = None
  if not category:
    noise = jnp.ones((len(features[0]), 1, features[0].shape[-1]))
  return (
    golden.model("visa")
    .clone(**words)
    .apply({"params": params}, *features, noise, is_training=True)
  )


def moved(features, index):
  """The image or the patch features of other images."""
  return [
    jnp.roll(array, 1, axis=0) if index == place else array
    for place, array in enumerate(features)
  ]


def test_without_category_words_there_is_no_vae(features):
  outputs = apply_without(features, category=True)
  assert outputs.category_bias is outputs.code_mean is None
  assert outputs.code_log_var is None
  # What the VAE encodes does not reach the prompts; the prototypes do.
  other = apply_without(moved(features, 0), category=True)
  assert_close(other.text_features, outputs.text_features, 1e-6)
  other = apply_without(moved(features, 1), category=True)
  assert jnp.abs(other.text_features - outputs.text_features).max() > 1e-4


def test_without_state_words_there_are_no_prototypes(features):
  outputs = apply_without(features, state=True)
  assert outputs.prototypes is outputs.distances is None
  other = apply_without(moved(features, 1), state=True)
  assert_close(other.text_features, outputs.text_features, 1e-6)
  other = apply_without(moved(features, 0), state=True)
  assert jnp.abs(other.text_features - outputs.text_features).max() > 1e-4


def test_without_either_the_prompts_are_the_same_for_all(features):
  text_features = apply_without(
    features, state=True, category=True
  ).text_features
  assert text_features.shape == (len(features[0]), 2, features[0].shape[-1])
  assert (text_features == text_features[:1]).all()
  assert jnp.abs(text_features[:, 0] - text_features[:, 1]).max() > 1e-4


PUBLISHED_SIZES = {
  # patch, image, vision width and layers, text width; CLIP's own parameters.
  "ViT-B/16": (16, 224, 768, 12, 512, 149_620_737),
  "ViT-L/14": (14, 224, 1024, 24, 768, 427_616_513),
  "ViT-L/14@336": (14, 336, 1024, 24, 768, 427_944_193),
}


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_full_size_shapes(name):
  """OpenAI's models at 37 x 37 patches, without computing anything."""
  patch, image, width, layers, joint, num_parameters = PUBLISHED_SIZES[name]
  config = CLIPConfig(
    text_config=dict(
      hidden_size=joint,
      intermediate_size=4 * joint,
      num_attention_heads=joint // 64,
    ),
    vision_config=dict(
      hidden_size=width,
      intermediate_size=4 * width,
      num_hidden_layers=layers,
      num_attention_heads=width // 64,
      image_size=image,
      patch_size=patch,
    ),
    projection_dim=joint,
  )
  model = cops.CoPS(
    clip_config=config,
    prefix_tokens=(49406,),
    suffix_tokens=(269, 49407),
    feature_layers=(layers // 2, layers),
    num_value_layers=layers - 2,
    smoothing_window=5,
    num_heads=8 if joint == 512 else 12,
    num_context_words=6,
    num_state_words=6,
    num_category_words=2,
    deep_prompt_length=4,
    deep_prompt_depth=8,
    prototype_injection="crossed",
    temperature=0.07,
    dtype=jnp.bfloat16,
  )
  clip_params = weights.clip_param_shapes(config)
  trainable = jax.eval_shape(
    lambda: cops.init_trainable(model, jax.random.key(0))
  )

  def forward(trainable, clip_params, images, noise):
    variables = encoding.join_params(trainable, clip_params)
    features = model.apply(variables, images, method=encoding.encode_images)
    return model.apply(variables, *features, noise, is_training=False)

  outputs = jax.eval_shape(
    forward,
    trainable,
    clip_params,
    jax.ShapeDtypeStruct((2, 37 * patch, 37 * patch, 3), jnp.float32),
    jax.ShapeDtypeStruct((2, 10, joint), jnp.float32),
  )
  assert outputs.patch_probability.shape == (2, 2, 1369, 2)
  assert outputs.text_features.shape == (2, 2, joint)
  assert outputs.prototypes.shape == (2, 2, 6, joint)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(outputs))
  assert _size(clip_params) == num_parameters
  # Words; 6 dense layers and 2 norms of the extractor, 5 of the VAE.
  words = 2 * 14 + 8 * 4 + 2 * 6
  dense = joint * joint + joint
  assert _size(trainable) == words * joint + 11 * dense + 4 * joint


def _size(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))
