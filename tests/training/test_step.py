"""Training steps against the authors' code, on any number of devices."""

import chex
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cops_jax.clip import features
from cops_jax.losses import count_mask_pixels
from cops_jax.runtime import mesh as sharding
from cops_jax.training import step as train_steps
from helpers import golden
from helpers.golden import assert_close
from helpers.steps import assert_same_way, make_adam, tiny_batch

# The columns of the stored losses.
TERMS = ("loss", "image", "patch", "gather", "scatter", "kl", "reconstruction")


def golden_batch(recipe):
  """The batch, with features of the normalised images, and the noise."""
  expected = golden.load(f"{recipe}_recipe")
  image_features, patch_features = golden.model(recipe).apply(
    golden.variables(),
    golden.images(recipe),
    method=features.encode_images,
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
  model, clip_params = golden.model(recipe), golden.clip_params()

  def loss(params):
    return train_steps.loss_and_terms(model, params, clip_params, batch)

  return loss


@pytest.mark.parametrize("recipe", golden.RECIPES)
def test_gradients_and_five_adam_steps(recipe):
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
  # The key's bias shifts all of a query's logits alike: no gradient.
  for name in actual.keys() - {"prototype_extractor.key.bias"}:
    assert_close(actual[name], want[name], 5e-5)


def test_padding_changes_nothing():
  """A batch padded with garbage has the loss and gradients of the batch."""
  batch, noise = golden_batch("mvtec")
  params = golden.trainable("prompt.", golden.load("weights"))

  def pad(array):
    return jnp.concatenate([array, array[:2]])

  padded = {name: pad(array) for name, array in batch.items()}
  padded["padding_mask"] = jnp.arange(5) < 3
  plain_loss = golden_loss("mvtec", batch, noise)
  padded_loss = golden_loss("mvtec", padded, pad(noise))
  plain, _ = jax.jit(jax.grad(plain_loss, has_aux=True))(params)
  other, _ = jax.jit(jax.grad(padded_loss, has_aux=True))(params)
  # Relative to the whole gradient: the key bias's is rounding error alone.
  scale = max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(plain))
  chex.assert_trees_all_close(plain, other, rtol=1e-4, atol=1e-6 * scale)


def test_terms_of_absent_parts_are_absent():
  """Neither gathered nor sampled, and the rest has gradients of all it has."""
  batch, _ = golden_batch("mvtec")
  model = golden.model(
    "mvtec", {"model.num_state_words": 0, "model.num_category_words": 0}
  )

  def gradients():
    params = model.init_trainable(jax.random.key(0))
    return jax.grad(train_steps.loss_and_terms, argnums=1, has_aux=True)(
      model, params, golden.clip_params(), batch
    )

  gradients, terms = jax.eval_shape(gradients)
  assert terms.keys() == {"loss", "image", "patch"}
  assert gradients.keys() == {"prompt_learner"}


def take_steps(mesh, batch, num_steps=3):
  # These losses compare all images.
  model = golden.model("visa", {"train.reconstruction": "pairwise"})
  optimizer = make_adam()
  params = model.init_trainable(jax.random.key(0))
  state = train_steps.create_train_state(params, optimizer)
  step = train_steps.make_train_step(model, optimizer, mesh)
  start = jax.device_get(state.params)
  losses = []
  for _ in range(num_steps):
    state, terms = step(
      sharding.replicate(state, mesh),
      sharding.replicate(golden.clip_params(), mesh),
      sharding.shard_batch(batch, mesh),
    )
    losses.append(float(terms["loss"]))
  return losses, start, jax.device_get(state.params)


def test_devices_do_not_matter():
  """6 images on one device, and on 8 devices with 2 of padding."""
  assert len(jax.devices()) == 8
  one = sharding.make_mesh(jax.devices()[:1])
  losses, start, params = take_steps(one, tiny_batch(6, 6), 20)
  batch = tiny_batch(6, 6)
  batch = {
    name: np.concatenate([array, np.zeros_like(array[:2])])
    for name, array in batch.items()
  }
  many_losses, _, many_params = take_steps(sharding.make_mesh(), batch, 20)
  np.testing.assert_allclose(losses, many_losses, rtol=1e-5)
  assert losses[0] != losses[1]
  assert_same_way(start, params, many_params)


def test_order_in_the_batch_does_not_matter():
  mesh = sharding.make_mesh()
  batch = tiny_batch(8, 8)
  turned = {name: np.roll(array, 3, axis=0) for name, array in batch.items()}
  losses, *_ = take_steps(mesh, batch, 2)
  turned_losses, *_ = take_steps(mesh, turned, 2)
  np.testing.assert_allclose(losses, turned_losses, rtol=1e-5)


def test_initial_distributions():
  model = golden.model("visa")
  params = model.init_trainable(jax.random.key(0))
  flat = flax.traverse_util.flatten_dict(params, sep=".")
  assert features.CLIP_PARAMS not in params
  width = model.clip.config.projection_dim
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


def test_accumulated_gradients_make_one_update():
  params = {"x": jnp.array([1.0, -2.0]), "y": jnp.array(3.0)}
  gradients = [
    {"x": jnp.array([0.5, 0.25]) * (k + 1), "y": jnp.array(-0.1) * k}
    for k in range(4)
  ]
  adam, accumulating = make_adam(), make_adam(accumulate_steps=2)
  state, accumulating_state = adam.init(params), accumulating.init(params)
  for first, second in (gradients[:2], gradients[2:]):
    updates, accumulating_state = accumulating.update(
      first, accumulating_state, params
    )
    assert not any(leaf.any() for leaf in jax.tree.leaves(updates))
    updates, accumulating_state = accumulating.update(
      second, accumulating_state, params
    )
    mean = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
    want, state = adam.update(mean, state, params)
    chex.assert_trees_all_close(updates, want, rtol=1e-6)
    params = optax.apply_updates(params, updates)


@pytest.mark.parametrize("num_steps", (1, 2, 4, 5))
def test_steps_left_over_make_an_update_too(num_steps):
  """Groups of three, and of what is left."""
  params = {"x": jnp.array([1.0, -2.0])}
  gradients = [{"x": jnp.array([0.5, 0.25]) * k} for k in range(1, 6)]
  adam = make_adam()
  accumulating = make_adam(accumulate_steps=3, num_steps=num_steps)
  state, accumulating_state = adam.init(params), accumulating.init(params)
  got = want = params
  for start in range(0, num_steps, 3):
    group = gradients[start : min(start + 3, num_steps)]
    for gradient in group:
      updates, accumulating_state = accumulating.update(
        gradient, accumulating_state, got
      )
      got = optax.apply_updates(got, updates)
    mean = jax.tree.map(lambda *rows: sum(rows) / len(rows), *group)
    updates, state = adam.update(mean, state, want)
    want = optax.apply_updates(want, updates)
  chex.assert_trees_all_close(got, want, rtol=1e-6)
  assert (got["x"] != params["x"]).all()


def test_a_step_that_is_not_finite_leaves_the_state_alone():
  mesh = sharding.make_mesh()
  model, optimizer = golden.model("visa"), make_adam()
  params = model.init_trainable(jax.random.key(0))
  state = train_steps.create_train_state(params, optimizer)
  step = train_steps.make_train_step(model, optimizer, mesh)
  batch = sharding.shard_batch(tiny_batch(8, 8), mesh)
  clip_params = sharding.replicate(golden.clip_params(), mesh)
  damaged = jax.tree.map(lambda leaf: leaf * jnp.nan, clip_params)
  state, _ = step(sharding.replicate(state, mesh), clip_params, batch)
  before = jax.device_get(state)
  assert before.is_finite and before.step == 1
  state, terms = step(state, damaged, batch)
  assert np.isnan(terms["loss"])
  # Later, sound steps do not go on from there.
  state, terms = step(state, clip_params, batch)
  assert np.isfinite(terms["loss"])
  after = jax.device_get(state)
  assert not after.is_finite
  chex.assert_trees_all_equal(after.replace(is_finite=before.is_finite), before)
