"""Trains and evaluates every method on the same data, and compares them.

  python -m tools.compare_methods --workdir=runs/methods --seeds=0,1,2

Prints a table, mean and standard deviation over the seeds, and writes it into
the work directory as methods.txt, beside a run's directory for each recipe and
seed. The last epoch is evaluated; nothing is chosen on the data
that are evaluated. The same command again skips what is finished. By default
the demo's recipes are compared; others with --recipes. What is not trained
comes once: seeds change nothing.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

from cops_jax import methods
from cops_jax.commands import command_line
from cops_jax.config import recipe
from cops_jax.files import write_file
from cops_jax.progress import show_messages

_RECIPES = "demo,anomalyclip_demo,prompt_ensemble_demo"


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
  """The command line."""
  from tools import ablate, runs

  parser = argparse.ArgumentParser(
    prog="python -m tools.compare_methods",
    description=__doc__.partition("\n")[0],
    allow_abbrev=False,
  )
  parser.add_argument("--workdir", required=True, type=pathlib.Path)
  parser.add_argument("--seeds", default="0,1,2")
  parser.add_argument("--recipes", default=_RECIPES, help="see configs/")
  parser.add_argument(
    "--datasets", help="to evaluate; by default each recipe's own"
  )
  parser.add_argument("--data_dir", default="", help="of prepared data sets")
  options = parser.parse_args(arguments)
  show_messages()
  configs = {name: recipe(name) for name in options.recipes.split(",")}
  for config in configs.values():
    config.data_dir = options.data_dir
    if options.datasets:
      config.evaluation.datasets = tuple(options.datasets.split(","))
  seeds = runs.parse_seeds(options.seeds.split(","))
  asked = [
    (name, seed)
    for name, config in configs.items()
    for seed in (seeds if methods.find(config.method).IS_TRAINED else seeds[:1])
  ]
  means, failures = runs.run_configs(configs, options.workdir, asked)
  rows = ablate.compare(means)
  if rows:
    table = ablate.format_table(rows, "recipe")
    write_file(options.workdir / "methods.txt", table + "\n")
    print(table)
  if failures:
    sys.exit(
      "\n".join(f"failed: {name}: {why}" for name, why in failures.items())
    )


if __name__ == "__main__":
  main()
