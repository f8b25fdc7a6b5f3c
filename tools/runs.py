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

# A logger of the package, so that its messages are shown too.
_logger = logging.getLogger("cops_jax.runs")


def seeds(text: str) -> list[int]:
  """Returns the seeds in a flag's value such as "0,1,2"."""
  return [int(seed) for seed in text.split(",")]


def make_parser(name: str, text: str) -> argparse.ArgumentParser:
  """Returns a parser with the flags that all tools that run configs share.

  `name` and `text` are the name and the docstring of the tool's module.
  """
  parser = commands.make_parser(name, text, commands.TOOL)
  flags.add(parser, "--workdir", required=True)
  flags.add(parser, "--allow_other_backbone")
  parser.add_argument(
    "--seeds",
    type=seeds,
    default=[0],
    help="train each config with these seeds; default 0",
  )
  flags.add_config(parser)
  return parser


def is_trained(config: Any) -> bool:
  """Returns True if a config's method is trained."""
  return methods.find(config.method).IS_TRAINED


def list_runs(
  configs: Mapping[str, Any], seeds: Sequence[int]
) -> list[tuple[str, int]]:
  """Returns the name and seed of each run.

  A method that is not trained has one run only, with the first seed.
  """
  return [
    (name, seed)
    for seed in seeds
    for name, config in configs.items()
    if seed == seeds[0] or is_trained(config)
  ]


def train_and_evaluate(
  config: Any, workdir: pathlib.Path, *, allow_other_backbone: bool = False
) -> Evaluated:
  """Trains and evaluates a config, or resumes, and returns the results."""
  from cops_jax import training
  from cops_jax.evaluation import many

  if is_trained(config):
    training.train(config, workdir, allow_other_backbone=allow_other_backbone)
    signals.release()  # An evaluation can be interrupted at any time.
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
  """Trains and evaluates each config with each seed; continues after failures.

  Args:
    configs: ConfigDicts by name.
    workdir: folder for the run directories, NAME/seed-SEED.
    seeds: seeds to train each config with.
    allow_other_backbone: see `training.train`.

  Returns:
    The content of results.json by name and seed, and reasons by failed run.

  Raises:
    InputError: if this process is part of a cluster.
  """
  import jax

  if jax.process_count() > 1:
    raise InputError(
      "this tool does not run in a cluster. Start it in a single process."
    )
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
    except Exception as error:  # The remaining runs are still useful.
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

  `runs` and `failures` are results of `run_all`. table.json also contains the
  `facts`.
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
  """Reports failed runs and exits with code 1, if there are any."""
  if failures:
    sys.exit(
      "\n".join(f"failed: {name}: {why}" for name, why in failures.items())
    )
