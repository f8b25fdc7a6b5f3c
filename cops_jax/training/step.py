"""One step of training, as pure functions; CLIP is frozen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, Sharding

from cops_jax import losses
from cops_jax.clip.features import ENCODE_FIELDS, encode_batch, join_params
from cops_jax.runtime.mesh import jit_step
from cops_jax.runtime.randomness import TRAIN_KEY, example_noise, random_key

# Fields of a batch that a training step reads.
STEP_FIELDS = (
  *ENCODE_FIELDS,
  *("mask_counts", "mask", "label", "example_id", "padding_mask"),
)


@flax.struct.dataclass
class TrainState:
  """All that training changes. CLIP's parameters are not part of it.

  Attributes:
    step: steps taken.
    params: trainable parameters.
    opt_state: the optimizer's.
    is_finite: whether all losses and gradients so far were. The step that they
      first are not, and all that follow, leave the rest of the state as it was.
  """

  step: Any  # An array; JAX puts shapes and other things in its place too.
  params: Mapping[str, Any]
  opt_state: optax.OptState
  is_finite: Any


def make_optimizer(
  settings: Any, num_steps: int
) -> optax.GradientTransformation:
  """Adam as the fields of config.train say.

  With accumulate_steps above 1 it takes the mean gradient of that many steps at
  the last of them, and leaves the parameters alone at the others. What is left
  at the end makes one update more.

  Args:
    settings: config.train.
    num_steps: of the whole training.
  """
  adam = optax.adam(
    settings.learning_rate, b1=settings.b1, b2=settings.b2, eps=settings.eps
  )
  if settings.accumulate_steps == 1:
    return adam
  num_full, rest = divmod(num_steps, settings.accumulate_steps)

  def group_size(num_updates):
    is_full = num_updates < num_full
    return jnp.where(is_full, settings.accumulate_steps, max(rest, 1))

  return optax.MultiSteps(adam, group_size).gradient_transformation()


def create_train_state(
  params: Mapping[str, Any], optimizer: optax.GradientTransformation
) -> TrainState:
  """The state before the first step."""
  return TrainState(
    jnp.zeros((), jnp.int32), params, optimizer.init(params), jnp.array(True)
  )


def loss_and_terms(
  model: nn.Module,
  params: Mapping[str, Any],
  clip_params: Mapping[str, Any],
  batch: Mapping[str, jax.Array],
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The loss of a batch and, unweighted, the terms it is made of.

  Args:
    model: a method's.
    params, clip_params: its two parameter trees.
    batch: what `encode_batch` takes; label and padding_mask (b,); mask_counts
      (b, n) or mask (b, h, w), and noise (b, z, d), standard normal, as the
      method needs.

  Returns:
    The loss and the terms by name, the loss among them, all of shape ().
  """
  variables = join_params(params, clip_params)
  features = encode_batch(model, variables, batch)
  terms = model.apply(variables, features, batch, method="loss_terms")
  loss = losses.total_loss(terms)
  return loss, {"loss": loss, **terms}


def make_train_step(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  clip_shardings: Sharding | Mapping[str, Any] | None = None,
) -> Callable[
  [TrainState, Mapping[str, Any], Mapping[str, jax.Array]],
  tuple[TrainState, dict[str, jax.Array]],
]:
  """Compiles one optimizer step over a global batch.

  Args:
    model: a method's; its config's seed is that of the noise, which step and
      example key.
    optimizer: see `make_optimizer`.
    mesh: to split batches over.
    clip_shardings: of CLIP's parameters; None if every device has a copy.

  Returns:
    `step(state, clip_params, batch)`, giving the next state and the loss with
    its terms and the gradient's norm. The given state's memory is reused.
  """
  key = random_key(model.config.seed, TRAIN_KEY)
  width = model.clip.config.projection_dim
  num_samples = model.num_noise_samples(is_training=True)

  def train_step(state, clip_params, batch):
    if num_samples:
      step_key = jax.random.fold_in(key, state.step)
      noise = example_noise(step_key, batch["example_id"], num_samples, width)
      batch = {**batch, "noise": noise}

    def loss(params):
      return loss_and_terms(model, params, clip_params, batch)

    gradients, terms = jax.grad(loss, has_aux=True)(state.params)
    gradient_norm = optax.tree.norm(gradients)
    updates, opt_state = optimizer.update(
      gradients, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    # Some process has no batch, see `pipeline.keep_pace`.
    is_missing = (batch["label"] < 0).any()
    terms["loss"] = jnp.where(is_missing, jnp.nan, terms["loss"])
    is_finite = jnp.isfinite(terms["loss"]) & jnp.isfinite(gradient_norm)
    is_finite &= state.is_finite
    new_state = TrainState(state.step + 1, params, opt_state, is_finite)
    new_state = jax.tree.map(
      lambda new, old: jnp.where(is_finite, new, old),
      new_state,
      state.replace(is_finite=is_finite),
    )
    return new_state, {**terms, "gradient_norm": gradient_norm}

  return jit_step(train_step, mesh, clip_shardings, updates_state=True)
