"""What a training step loses to a checkpoint.

  python -m benchmarks.saving

Of the published recipe's parameters and optimizer, 79 MB, or with --quick the
demo's. Measured in turns: how long `save` keeps training from its next step,
and how long it takes until the checkpoint is complete, which is what it kept
training for before it went on in the background.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator

import jax
import numpy as np

from benchmarks.timing import Row, row
from benchmarks.vit_l import random_clip
from cops_jax.config import recipe
from cops_jax.runs.checkpoints import Checkpoints
from cops_jax.runtime.mesh import make_mesh, replicate
from cops_jax.runtime.randomness import INIT_KEY, random_key
from cops_jax.training.step import create_train_state, make_optimizer
from cops_jax.weights import build_model, load_clip, settle_dtype


def rows(is_quick: bool) -> Iterator[Row]:
  """Times in a folder of the system for temporary files."""
  config = settle_dtype(recipe("demo" if is_quick else "visa"), None)
  clip = load_clip("demo") if is_quick else random_clip()
  optimizer = make_optimizer(config.train, num_steps=1)
  params = build_model(config, clip).init_trainable(random_key(0, INIT_KEY))
  # As in training: a copy on every device.
  state = replicate(create_train_state(params, optimizer), make_mesh())
  num_bytes = sum(
    leaf.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state))
  )
  begun, complete = [], []
  with tempfile.TemporaryDirectory() as workdir:
    with Checkpoints(workdir, num_kept=1) as saved:
      for step in range(4 if is_quick else 11):
        start = time.perf_counter()
        saved.save(step, state.params, state.opt_state)
        begun.append(time.perf_counter() - start)
        saved.wait()
        complete.append(time.perf_counter() - start)
  begun, complete = np.array(begun[1:]), np.array(complete[1:])
  ratio = np.median(begun) / np.median(complete)
  yield row(f"until {num_bytes / 1e6:.1f} MB are saved", complete)
  yield row("until training goes on", begun, f"{ratio:.2f} of that")


if __name__ == "__main__":
  from benchmarks.table import run

  run({"saving": rows})
