"""Time that training waits for a checkpoint.

The published recipe's parameters and optimizer state have 79 MB. The benchmark
measures how long `save` delays the next training step, and how long it takes
until the checkpoint is complete.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator

import jax
import numpy as np

from benchmarks.common import Row, load
from cops_jax.runs.checkpoints import Checkpoints
from cops_jax.runtime.mesh import make_mesh, replicate
from cops_jax.training.step import create_train_state, make_optimizer
from cops_jax.weights.model import build_model


def rows(is_quick: bool) -> Iterator[Row]:
  """Yields rows, measured in a temporary folder."""
  config, backbone = load("demo" if is_quick else "visa")
  optimizer = make_optimizer(config.train, num_steps=1)
  params = build_model(config, backbone).init_trainable(jax.random.key(0))
  # Every device has a copy, as in training.
  state = replicate(create_train_state(params, optimizer), make_mesh())
  leaves = jax.tree.leaves((state.params, state.opt_state))
  num_bytes = sum(leaf.nbytes for leaf in leaves)
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
  yield Row(f"save {num_bytes / 1e6:.1f} MB", complete)
  yield Row("wait until training continues", begun, f"{ratio:.2f} of saving")
