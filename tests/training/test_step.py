"""Training steps against the authors' code, and on one and eight devices."""

import functools

import chex
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cops_jax.backbones import features
from cops_jax.losses import count_mask_pixels
from cops_jax.runtime.mesh import (
  backbone_shardings,
  make_mesh,
  num_device_bytes,
  replicate,
  shard_batch,
)
from cops_jax.training import step as train_steps
from helpers import golden
from helpers.golden import assert_close
from helpers.steps import assert_same_updates, make_adam, tiny_batch
from tools.compile_ahead import exchanges

# Columns of the stored losses.
TERMS = ("loss", "image", "patch", "gather", "scatter", "kl", "reconstruction")


def golden_batch(recipe):
  """Returns the stored batch, with features of its images, and the noise."""
  expected = golden.load(f"{recipe}_recipe")
  image_features, patch_features = features.encode_images(
    golden.model(recipe), golden.backbone_params(), golden.images(recipe)
  )
  counts = [count_mask_pixels(mask, 14) for mask in expected["in.mask"]]
  batch = {
    "image_features": image_features,
    "patch_features": patch_features,
    "mask_counts": jnp.asarray(np.stack(counts)),
    "label": jnp.asarray(expected["in.label"], jnp.int32),
    "padding_mask": jnp.ones(len(counts), bool),
  }
  return batch, jnp.asarray(expected["in.train_noise"])[:, None]


def golden_loss(recipe, batch, noise):
  batch = {**batch, "noise": noise}
  model, backbone_params = golden.model(recipe), golden.backbone_params()

  def loss(params):
    return train_steps.loss_and_terms(model, params, backbone_params, batch)

  return loss


@pytest.mark.parametrize("recipe", golden.RECIPES)
def test_gradients_and_five_adam_steps_match_the_authors(recipe):
  expected = golden.load(f"{recipe}_recipe")
  params = golden.trainable("prompt.", golden.load("weights"))
  optimizer = optax.adam(1e-3, b1=0.5, b2=0.999, eps=1e-8)
  state = optimizer.init(params)
  gradient_step = jax.jit(
    jax.grad(golden_loss(recipe, *golden_batch(recipe)), has_aux=True)
  )
  rows = []
  for step in range(5):
    gradients, terms = gradient_step(params)
    rows.append([terms[name] for name in TERMS])
    if step == 0:
      first_gradients = gradients
    updates, state = optimizer.update(gradients, state, params)
    params = optax.apply_updates(params, updates)
  rows, want = np.array(rows), expected["train.losses"]
  for column, name in enumerate(TERMS):
    if want[0, column] == 0:
      assert not rows[:, column].any(), name
      continue
    assert_close(rows[:1, column], want[:1, column], 1e-5)
    assert_close(rows[:, column], want[:, column], 5e-5)

  actual = flax.traverse_util.flatten_dict(first_gradients, sep=".")
  want = flax.traverse_util.flatten_dict(
    golden.trainable("grad.", expected), sep="."
  )
  assert actual.keys() == want.keys()
  # The key's bias shifts all logits of a query equally: its gradient is 0.
  for name in actual.keys() - {"prototype_extractor.key.bias"}:
    assert_close(actual[name], want[name], 5e-5)


def test_models_without_state_and_category_words_have_fewer_terms():
  """Such a model has parameters and gradients of its prompts only."""
  batch, _ = golden_batch("mvtec")
  model = golden.model(
    "mvtec", {"model.num_state_words": 0, "model.num_category_words": 0}
  )

  def gradients():
    params = model.init_trainable(jax.random.key(0))
    return jax.grad(train_steps.loss_and_terms, argnums=1, has_aux=True)(
      model, params, golden.backbone_params(), batch
    )

  gradients, terms = jax.eval_shape(gradients)
  assert terms.keys() == {"loss", "image", "patch"}
  assert gradients.keys() == {"prompt_learner"}


@functools.cache
def compiled(num_devices, is_split=False):
  """Compiles a step and returns it with its first state, backbone and mesh.

  The pairwise reconstruction loss compares all images of the batch.
  """
  mesh = make_mesh(jax.devices()[:num_devices])
  model = golden.model("visa", {"train.reconstruction": "pairwise"})
  optimizer = make_adam()
  shardings = backbone_shardings(golden.backbone_params(), mesh, is_split)
  backbone_params = jax.device_put(golden.backbone_params(), shardings)
  params = model.init_trainable(jax.random.key(0))
  start = train_steps.create_train_state(params, optimizer)
  start = jax.device_get(start)
  step = train_steps.make_train_step(model, optimizer, mesh, shardings)
  state, batch = replicate(start, mesh), shard_batch(BATCHES[num_devices], mesh)
  step = step.lower(state, backbone_params, batch).compile()
  return step, start, backbone_params, mesh


PADDED = tiny_batch(6, 8)  # The last two rows are padding with random pixels.
BATCHES = {
  1: {name: array[:6] for name, array in PADDED.items()},
  8: {name: np.roll(array, 3, axis=0) for name, array in PADDED.items()},
}


def take_steps(num_devices, num_steps, is_split=False, first_step=0):
  step, start, backbone_params, mesh = compiled(num_devices, is_split)
  state = replicate(start.replace(step=np.int32(first_step)), mesh)
  batch, found = shard_batch(BATCHES[num_devices], mesh), []
  for _ in range(num_steps):
    state, terms = step(state, backbone_params, batch)
    found.append(jax.device_get(terms))
  return found, jax.device_get(state.params)


def test_devices_order_and_padding_do_not_matter():
  """Six images on one device equal the same on eight, reordered and padded."""
  one, params = take_steps(1, 20)
  many, many_params = take_steps(8, 20)
  for name in one[0]:
    losses, want = ([terms[name] for terms in run] for run in (many, one))
    np.testing.assert_allclose(losses, want, rtol=1e-4, err_msg=name)
  assert_same_updates(compiled(1)[1].params, params, many_params)


def test_noise_depends_on_the_step():
  """The same parameters and images have another loss at another step."""
  (first,), _ = take_steps(8, 1)
  (again,), _ = take_steps(8, 1)
  (other,), _ = take_steps(8, 1, first_step=1)
  assert first == again
  for name in ("loss", "image", "reconstruction"):
    assert first[name] != other[name], name


def test_devices_exchange_little_more_than_the_gradient():
  """Losses are means over the global batch, which needs a few more numbers."""
  step, start, backbone_params, _ = compiled(8)
  total = sum(exchanges(step.as_text()).values())
  gradient = sum(leaf.nbytes for leaf in jax.tree.leaves(start.params))
  # Devices also exchange loss terms and, to compare all images, features.
  width = golden.model("visa").backbone.feature_width
  assert gradient <= total <= gradient + 4 * 8 * width * 4 + 4096
  assert total < sum(leaf.nbytes for leaf in jax.tree.leaves(backbone_params))


def test_a_split_backbone_needs_less_memory_and_has_the_same_loss():
  whole, part = (
    num_device_bytes(compiled(8, is_split)[2]) for is_split in (False, True)
  )
  assert part < 0.2 * whole
  (want,), _ = take_steps(8, 1)
  (found,), _ = take_steps(8, 1, is_split=True)
  for name, term in want.items():
    np.testing.assert_allclose(found[name], term, rtol=1e-5)


def test_initial_parameters_have_the_authors_distributions():
  model = golden.model("visa")
  params = model.init_trainable(jax.random.key(0))
  flat = flax.traverse_util.flatten_dict(params, sep=".")
  assert features.BACKBONE_PARAMS not in params
  width = model.backbone.feature_width
  limit = (6 / (4 * width)) ** 0.5
  for name, array in flat.items():
    if name.endswith(".bias"):
      assert not array.any(), name
    elif name.endswith(".scale"):
      assert (array == 1).all(), name
    elif name.split(".")[1] in ("query", "key", "value"):
      assert limit * 0.99 < abs(array).max() <= limit, name
    else:
      assert 0.018 < array.std() < 0.022, name


@pytest.mark.parametrize("num_steps", (2, 4, 6))
def test_accumulated_gradients_make_one_update(num_steps):
  """Three steps make an update, and so do the steps that remain at the end."""
  params = {"x": jnp.array([1.0, -2.0]), "y": jnp.array(3.0)}
  gradients = [
    {"x": jnp.array([0.5, 0.25]) * k, "y": jnp.array(-0.1) * k}
    for k in range(1, num_steps + 1)
  ]
  adam = make_adam()
  accumulating = make_adam(accumulate_steps=3, num_steps=num_steps)
  state, accumulating_state = adam.init(params), accumulating.init(params)
  got = want = params
  for start in range(0, num_steps, 3):
    group = gradients[start : start + 3]
    for place, gradient in enumerate(group, 1):
      updates, accumulating_state = accumulating.update(
        gradient, accumulating_state, got
      )
      is_last = place == len(group)
      assert is_last == any(leaf.any() for leaf in jax.tree.leaves(updates))
      got = optax.apply_updates(got, updates)
    mean = jax.tree.map(lambda *rows: sum(rows) / len(rows), *group)
    updates, state = adam.update(mean, state, want)
    want = optax.apply_updates(want, updates)
  chex.assert_trees_all_close(got, want, rtol=1e-6)
