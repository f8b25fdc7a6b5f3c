"""The training step, as pure functions; the backbone is frozen."""

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
from cops_jax.backbones.features import ENCODE_FIELDS, encode_batch, join_params
from cops_jax.runtime.mesh import jit_step
from cops_jax.runtime.randomness import TRAIN_KEY, example_noise, random_key

# Fields of a batch that a training step reads.
STEP_FIELDS = (
  *ENCODE_FIELDS,
  *("mask_counts", "mask", "label", "example_id", "padding_mask"),
)


@flax.struct.dataclass
class TrainState:
  """State that a training step updates, without the backbone's parameters.

  Attributes:
    step: number of completed steps, as a scalar array.
    params: trainable parameters.
    opt_state: state of the optimizer.
    is_finite: True while all losses and gradients have been finite. The first
      step that is not finite, and all later steps, change no other attribute.
  """

  step: Any
  params: Mapping[str, Any]
  opt_state: optax.OptState
  is_finite: Any


def make_optimizer(
  settings: Any, num_steps: int
) -> optax.GradientTransformation:
  """Returns Adam with the settings of config.train.

  With accumulate_steps = k above 1, every k steps make one update, with their
  mean gradient. Steps that remain at the end of the training, after `num_steps`
  steps, make one more update.
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
  """Returns the state before the first step."""
  return TrainState(
    jnp.zeros((), jnp.int32), params, optimizer.init(params), jnp.array(True)
  )


def loss_and_terms(
  model: nn.Module,
  params: Mapping[str, Any],
  backbone_params: Mapping[str, Any],
  batch: Mapping[str, jax.Array],
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns a batch's loss and its unweighted terms.

  Args:
    model: model of a method.
    params, backbone_params: the model's two parameter trees.
    batch: fields of `encode_batch`; label and padding_mask (b,); mask_counts
      (b, n) or mask (b, h, w); and, if the model needs it, standard normal
      noise (b, 1, d).

  Returns:
    The loss, and the terms by name, including "loss", all of shape ().
  """
  variables = join_params(params, backbone_params)
  features = encode_batch(model, backbone_params, batch)
  terms = model.apply(variables, features, batch, method="loss_terms")
  loss = losses.total_loss(terms)
  return loss, {"loss": loss, **terms}


def make_train_step(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  backbone_shardings: Sharding | Mapping[str, Any] | None = None,
) -> Callable[
  [TrainState, Mapping[str, Any], Mapping[str, jax.Array]],
  tuple[TrainState, dict[str, jax.Array]],
]:
  """Compiles one optimizer step over a global batch.

  Args:
    model: model of a method. The seed of its config, the step and the example
      determine the noise.
    optimizer: see `make_optimizer`.
    mesh: mesh of the devices.
    backbone_shardings: see `mesh.backbone_shardings`; None if every device has
      a copy of the backbone.

  Returns:
    A function `step(state, backbone_params, batch)` that donates the state. It
    returns the next state and, by name, the loss, its terms and the gradient's
    norm.
  """
  key = random_key(model.config.seed, TRAIN_KEY)
  width = model.backbone.feature_width

  def train_step(state, backbone_params, batch):
    if model.needs_noise:
      step_key = jax.random.fold_in(key, state.step)
      noise = example_noise(step_key, batch["example_id"], width)
      batch = {**batch, "noise": noise}

    def loss(params):
      return loss_and_terms(model, params, backbone_params, batch)

    gradients, terms = jax.grad(loss, has_aux=True)(state.params)
    gradient_norm = optax.tree.norm(gradients)
    updates, opt_state = optimizer.update(
      gradients, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    # A process without a batch sends padding with labels of -1.
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

  return jit_step(train_step, mesh, backbone_shardings, updates_state=True)
