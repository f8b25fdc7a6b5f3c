"""Trains and evaluates every method on the same data, and compares them.

  python -m tools.compare_methods --workdir=runs/methods --seeds=0,1,2

Prints a table of means and standard deviations over the seeds, and writes
table.txt, table.csv and table.json into --workdir, next to a run directory for
each recipe and seed. Prompts are evaluated after the last epoch, so nothing is
chosen on the evaluated data. Repeat the command to resume. By default, the
demo's recipes are compared; --recipes chooses other recipes. Methods that are
not trained are evaluated once, because seeds do not change them.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from cops_jax.commands import TOOL, command_line, make_parser
from cops_jax.config import recipe
from cops_jax.progress import show_messages

_RECIPES = (
  "demo,anomalyclip_demo,uniadet_demo,uniadet_demo:augmented,"
  "prompt_ensemble_demo"
)


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
  from cops_jax.reporting.comparison import compare, format_rows
  from tools import runs

  parser = make_parser("compare_methods", __doc__, TOOL)
  parser.add_argument(
    "--workdir",
    required=True,
    type=pathlib.Path,
    help="write tables and run directories into this folder",
  )
  parser.add_argument(
    "--seeds",
    default="0,1,2",
    type=runs.seeds,
    help="train each recipe with these seeds; default %(default)s",
  )
  parser.add_argument(
    "--recipes",
    default=_RECIPES,
    help="compare these recipes of configs/; default %(default)s",
  )
  parser.add_argument(
    "--datasets",
    help="evaluate on these data sets; default those of each recipe",
  )
  parser.add_argument(
    "--data_dir",
    default="",
    help="read prepared data from this folder; default ~/tensorflow_datasets",
  )
  options = parser.parse_args(arguments)
  show_messages()
  configs = {name: recipe(name) for name in options.recipes.split(",")}
  for config in configs.values():
    config.data_dir = options.data_dir
    if options.datasets:
      config.evaluation.datasets = tuple(options.datasets.split(","))
  found, failures = runs.run_all(configs, options.workdir, options.seeds)
  if found:
    rows = compare(found)
    table = format_rows(rows, "recipe")
    runs.write_table(options.workdir, rows, table, found, failures)
  runs.exit_on_failures(failures)


if __name__ == "__main__":
  main()
