"""Runs, each trained and evaluated unless it is finished already."""

from __future__ import annotations

import json
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cops_jax import methods
from cops_jax.config import complete
from cops_jax.errors import InputError
from cops_jax.files import seal, unseal, write_file
from cops_jax.reporting import write
from cops_jax.runtime import signals

# Shown as the package's own messages are.
_logger = logging.getLogger("cops_jax.runs")

_FINISHED_FILE = "finished.json"

# Mean of each metric by data set.
Means = Mapping[str, Mapping[str, float]]


def parse_seeds(texts: Sequence[str]) -> list[int]:
  """The seeds that a command line names.

  Raises:
    InputError: one is no whole number.
  """
  try:
    return [int(text) for text in texts]
  except ValueError as error:
    raise InputError(f"--seeds={','.join(texts)}: {error}") from error


def train_and_evaluate(
  config: Any, workdir: pathlib.Path, *, allow_other_clip: bool = False
) -> Means:
  """A run's means, undefined ones left out; read if it is finished already."""
  from cops_jax import training
  from cops_jax.evaluation import many

  path = workdir / _FINISHED_FILE
  asked = _all_that_decides(config)
  try:
    finished = unseal(path.read_bytes())
    if finished["asked"] == json.loads(json.dumps(asked)):
      return finished["means"]
  except FileNotFoundError:
    pass
  except (OSError, ValueError, KeyError) as error:
    _logger.warning("%s cannot be used: %s", path, error)
  if methods.find(config.method).IS_TRAINED:
    training.train(config, workdir, allow_other_clip=allow_other_clip)
    signals.release()  # An evaluation may be ended at any time.
  evaluated = many.evaluate(config, workdir, allow_other_clip=allow_other_clip)
  if evaluated.results:
    write(workdir, evaluated)
  if evaluated.failed:
    raise InputError("; ".join(evaluated.failed.values()))
  means = {
    dataset: {
      metric: value
      for metric, value in result.mean.items()
      if np.isfinite(value)
    }
    for dataset, result in evaluated.results.items()
  }
  write_file(path, seal({"asked": asked, "means": means}, indent=2))
  return means


def _all_that_decides(config):
  """Config, CLIP and data of a run, as JSON has them."""
  from cops_jax import weights
  from cops_jax.inputs.pipeline import load_examples

  names = [(config.train.dataset, config.train.split)]
  names += [
    (name, config.evaluation.split) for name in config.evaluation.datasets
  ]
  return {
    "config": complete(config.to_dict()),
    "clip_sha256": weights.clip_of(config).sha256,
    "data": {
      f"{name}, {split}": load_examples(config, name, split).fingerprint()
      for name, split in names
    },
  }


def run_configs(
  configs: Mapping[str, Any],
  workdir: pathlib.Path,
  runs: Sequence[tuple[str, int]],
  *,
  allow_other_clip: bool = False,
) -> tuple[dict[str, dict[int, Means]], dict[str, str]]:
  """Trains and evaluates what is not finished; goes on after a failure.

  Args:
    configs: by name.
    workdir: receives a folder for each name and seed.
    runs: names and seeds.
    allow_other_clip: see `training.train`.

  Returns:
    Means by name and seed; and of what failed, the reason by name.
  """
  means = {name: {} for name in configs}
  failures = {}
  for number, (name, seed) in enumerate(runs, start=1):
    if signals.is_due(number):
      signals.stop(
        f"stopped before {name} with seed {seed}: the same command goes on"
        f" from there (exit code {signals.EXIT_CODE})"
      )
    _logger.info("run %d of %d: %s with seed %d", number, len(runs), name, seed)
    run = configs[name].copy_and_resolve_references()
    run.seed = seed
    try:
      means[name][seed] = train_and_evaluate(
        run,
        workdir / name / f"seed-{seed}",
        allow_other_clip=allow_other_clip,
      )
    except Exception as error:  # The other runs are still useful.
      failures[f"{name} with seed {seed}"] = f"{error}"
      _logger.warning(
        "%s with seed %d failed: %s",
        name,
        seed,
        error,
        exc_info=not isinstance(error, InputError),
      )
  return means, failures
