"""Trains and evaluates many runs, and writes a table of their results."""

from __future__ import annotations

import argparse
import logging
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from cops_jax import __version__, commands, methods
from cops_jax.commands import flags
from cops_jax.errors import InputError
from cops_jax.evaluation.results import Evaluated, without_nan
from cops_jax.files import to_json, write_file
from cops_jax.reporting.comparison import Row, Runs, write_rows
from cops_jax.reporting.tables import results_json
from cops_jax.runtime import signals

# Shown as the package's own messages are.
_logger = logging.getLogger("cops_jax.runs")


def seeds(text: str) -> list[int]:
  """Returns the seeds that a flag names, such as "0,1,2"."""
  return [int(seed) for seed in text.split(",")]


def make_parser(name: str, text: str) -> argparse.ArgumentParser:
  """Returns a tool's parser with the flags of all tools that run configs.

  Args:
    name: name of the tool's module.
    text: the module's docstring.
  """
  parser = commands.make_parser(name, text, commands.TOOL)
  flags.add(parser, "--workdir", required=True)
  flags.add(parser, "--allow_other_backbone")
  parser.add_argument(
    "--seeds", type=seeds, default=[0], help="seeds to train each config with"
  )
  flags.add_config(parser)
  return parser


def is_trained(config: Any) -> bool:
  """Whether a config's method has something to train."""
  return methods.find(config.method).IS_TRAINED


def list_runs(
  configs: Mapping[str, Any], seeds: Sequence[int]
) -> list[tuple[str, int]]:
  """Returns names and seeds; one seed for a method that is not trained."""
  return [
    (name, seed)
    for seed in seeds
    for name, config in configs.items()
    if seed == seeds[0] or is_trained(config)
  ]


def train_and_evaluate(
  config: Any, workdir: pathlib.Path, *, allow_other_backbone: bool = False
) -> Evaluated:
  """Returns a run's results; finished work is not repeated."""
  from cops_jax import training
  from cops_jax.evaluation import many

  if is_trained(config):
    training.train(config, workdir, allow_other_backbone=allow_other_backbone)
    signals.release()  # An evaluation may be ended at any time.
  evaluated = many.evaluate(
    config, workdir, allow_other_backbone=allow_other_backbone
  )
  if evaluated.results:
    from cops_jax.reporting.report import write

    write(workdir, evaluated)
  return evaluated


def run_all(
  configs: Mapping[str, Any],
  workdir: pathlib.Path,
  seeds: Sequence[int],
  *,
  allow_other_backbone: bool = False,
) -> tuple[Runs, dict[str, str]]:
  """Trains and evaluates what is not finished; continues after a failure.

  Args:
    configs: by name.
    workdir: receives a folder for each name and seed.
    seeds: to train each config with.
    allow_other_backbone: see `training.train`.

  Returns:
    The content of results.json by name and seed; and reasons by failed run.

  Raises:
    InputError: this process is one of a cluster.
  """
  import jax

  if jax.process_count() > 1:
    raise InputError("runs are compared in one process, not in a cluster")
  found, failures = {}, {}
  runs = list_runs(configs, seeds)
  for number, (name, seed) in enumerate(runs, start=1):
    _logger.info("run %d of %d: %s with seed %d", number, len(runs), name, seed)
    config = configs[name].copy_and_resolve_references()
    config.seed = seed
    folder, label = workdir / name / f"seed-{seed}", f"{name} with seed {seed}"
    try:
      evaluated = train_and_evaluate(
        config, folder, allow_other_backbone=allow_other_backbone
      )
      if evaluated.results:
        found.setdefault(name, {})[seed] = results_json(evaluated)
      if evaluated.failed:
        failures[label] = "; ".join(evaluated.failed.values())
    except Exception as error:  # The other runs are still useful.
      signals.release()
      failures[label] = str(error)
      is_known = isinstance(error, InputError)
      _logger.warning("%s failed: %s", label, error, exc_info=not is_known)
  return found, failures


def write_table(
  workdir: pathlib.Path,
  rows: Sequence[Row],
  text: str,
  runs: Runs,
  failures: Mapping[str, str],
  **facts: Any,
) -> None:
  """Prints a table and writes table.txt, table.csv and table.json.

  Args:
    workdir: receives the files.
    rows: from `comparison.compare`.
    text: the table.
    runs, failures: from `run_all`.
    **facts: more for table.json.
  """
  write_file(workdir / "table.txt", text + "\n")
  write_rows(workdir / "table.csv", rows)
  content = {
    "version": __version__,
    **facts,
    "rows": [
      {**vars(row), "mean": row.mean, "deviation": row.deviation}
      for row in rows
    ],
    "runs": runs,
    "failures": failures,
  }
  text_of_json = to_json(without_nan(content), indent=2)
  write_file(workdir / "table.json", text_of_json + "\n")
  print(text)


def exit_on_failures(failures: Mapping[str, str]) -> None:
  """Ends the program with exit code 1 if runs have failed."""
  if failures:
    sys.exit(
      "\n".join(f"failed: {name}: {why}" for name, why in failures.items())
    )
