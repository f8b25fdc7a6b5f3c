"""The optimizer and the training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from optax import contrib

from cops_jax.backbones.clip import CLIP
from tools.pretrain_demo_clip.losses import total_loss
from tools.pretrain_demo_clip.model import IMAGE_SIZE

# The first steps use crops, which are cheaper and more varied.
CROP_SIZE, CROP_FRACTION = 80, 0.7
PEAK_LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.05
REPORT_EVERY_STEPS, SAVE_EVERY_STEPS = 50, 500


def image_sizes(steps: int) -> list[int]:
  """Returns the side of the images in pixels for each step."""
  num_crops = int(steps * CROP_FRACTION)
  return [CROP_SIZE] * num_crops + [IMAGE_SIZE] * (steps - num_crops)


def make_optimizer(steps: int) -> optax.GradientTransformation:
  """Returns Muon for the matrices of layers, and Adam for everything else."""

  def muon_dimensions(params):
    def choose(path, leaf):
      name = jax.tree_util.keystr(path)
      is_hidden = "layers" in name and leaf.ndim == 2
      return contrib.MuonDimensionNumbers() if is_hidden else None

    return jax.tree_util.tree_map_with_path(choose, params)

  schedule = optax.warmup_cosine_decay_schedule(
    0.0, PEAK_LEARNING_RATE, min(300, steps // 10), steps
  )
  return optax.chain(
    optax.clip_by_global_norm(1.0),
    contrib.muon(
      schedule,
      weight_decay=WEIGHT_DECAY,
      weight_decay_mask=lambda tree: jax.tree.map(
        lambda leaf: leaf.ndim > 1, tree
      ),
      muon_weight_dimension_numbers=muon_dimensions,
      adam_b2=0.98,
      consistent_rms=0.2,
    ),
  )


def make_train_step(
  model: CLIP, optimizer: optax.GradientTransformation
) -> Callable[..., tuple[Any, Any, dict[str, jax.Array]]]:
  """Returns `step(params, state, batch)`, which returns the next of both.

  The step also returns the loss terms by name.
  """

  @jax.jit
  def train_step(params, state, batch):
    def loss(params):
      return model.apply(
        {"params": params["clip"]}, batch, params["heads"], method=total_loss
      )

    gradients, terms = jax.grad(loss, has_aux=True)(params)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, terms

  return train_step


def progress_line(
  step: int, steps: int, history: Sequence[Mapping[str, float]], seconds: float
) -> str:
  """Returns the progress line after a step, with the means of `history`."""
  means = {k: np.mean([row[k] for row in history]) for k in history[0]}
  text = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
  rate = step / seconds
  left = (steps - step) / rate / 60
  return f"{step}/{steps}  {text}  {rate:.2f} steps/s  {left:.0f} min left"


def train(
  model: CLIP,
  params: dict[str, Any],
  batches: Iterable[Mapping[str, np.ndarray]],
  steps: int,
  save: Callable[[dict[str, Any]], None],
) -> None:
  """Runs a step for each batch, prints progress and saves regularly.

  `params["clip"]` belongs to the model, and `params["heads"]` to its losses.
  `batches` yields a batch from `batches.draw_batch` for each step.
  """
  optimizer = make_optimizer(steps)
  state = optimizer.init(params)
  train_step = make_train_step(model, optimizer)
  start, history = time.time(), []
  for step, batch in enumerate(batches, start=1):
    params, state, terms = train_step(params, state, batch)
    history.append(jax.device_get(terms))
    if step % REPORT_EVERY_STEPS == 0 or step == steps:
      seconds = time.time() - start
      print(progress_line(step, steps, history, seconds), flush=True)
      history.clear()
    if step % SAVE_EVERY_STEPS == 0 or step == steps:
      save(params)
