"""Inputs and comparisons for tests of the training step."""

from types import SimpleNamespace

import jax
import numpy as np
import optax

from cops_jax.training.step import loss_and_terms, make_optimizer

# Adam divides by the root of a second moment, which can be almost zero. It then
# turns rounding errors, which depend on the processor and the devices, into
# full steps. An epsilon above the gradients makes the steps as smooth as the
# gradients, so equivalent trainings can be compared.
SMOOTH = {"learning_rate": 0.01, "eps": 0.1}


def make_adam(accumulate_steps=1, num_steps=100):
  settings = SimpleNamespace(
    b1=0.9, b2=0.999, accumulate_steps=accumulate_steps, **SMOOTH
  )
  return make_optimizer(settings, num_steps)


def take_five_adam_steps(model, params, backbone_params, batch):
  """Returns the loss terms of each step, (5, 3), and the first gradients."""
  optimizer = optax.adam(1e-3, b1=0.5, b2=0.999, eps=1e-8)
  state = optimizer.init(params)

  def loss(params):
    return loss_and_terms(model, params, backbone_params, batch)

  gradient_step = jax.jit(jax.grad(loss, has_aux=True))
  rows = []
  for step in range(5):
    gradients, terms = gradient_step(params)
    rows.append([terms[name] for name in ("loss", "image", "patch")])
    if step == 0:
      first_gradients = gradients
    updates, state = optimizer.update(gradients, state, params)
    params = optax.apply_updates(params, updates)
  return np.array(rows), first_gradients


def assert_same_updates(start, ours, other, tolerance=1e-5):
  """Asserts that two trainings moved the parameters alike, up to rounding."""
  ours, other = (jax.tree.map(np.subtract, end, start) for end in (ours, other))
  norm = optax.tree.norm
  assert norm(ours) > 0.01 * norm(start)
  difference = norm(jax.tree.map(np.subtract, ours, other))
  assert difference <= tolerance * norm(ours)


def tiny_batch(size, padded_size):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (padded_size, 28, 28, 3), dtype=np.uint8)
  return {
    "image": images,
    "mask_counts": rng.integers(0, 3, (padded_size, 4)).astype(np.int32),
    "label": rng.integers(0, 2, padded_size).astype(np.int32),
    "example_id": np.arange(padded_size, dtype=np.uint32),
    "padding_mask": np.arange(padded_size) < size,
  }
