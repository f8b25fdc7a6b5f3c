"""Trains and evaluates the full model and every ablation, and compares them.

  python -m tools.ablate --workdir=runs/ablations --seeds=0,1,2

Prints a table and writes table.txt, table.csv and table.json into --workdir,
next to a run directory for each ablation and seed. The numbers in brackets are
differences from the full model. Repeat the command to resume. After a failure
the remaining runs continue; failures are reported at the end, with exit code 1.
By default, CoPS's demo is ablated. --config=configs/visa.py chooses another
config, and --config=uniadet_demo:augmented another method.
--config.train.b1=0.9 sets a field.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from configs import ablations
from cops_jax.commands import command_line, flags
from cops_jax.progress import show_messages
from cops_jax.reporting.comparison import compare, format_rows
from cops_jax.runtime import signals
from tools import runs

_BASE = "full"  # Name of the model that every ablation is compared with.


def _parser():
  parser = runs.make_parser("ablate", __doc__)
  parser.add_argument(
    "--only",
    type=flags.comma_list,
    help="compare only these ablations; default all of the method",
  )
  return parser


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
  signals.catch_signals()
  options = _parser().parse_args(arguments)
  show_messages()
  config = flags.read_config(options, ablations.get_config)
  workdir = pathlib.Path(options.workdir)
  known = ablations.find(config.method)
  names = options.only or known
  configs = {name: ablations.ablate(config, name) for name in names}
  found, failures = runs.run_all(
    configs,
    workdir,
    options.seeds,
    allow_other_backbone=options.allow_other_backbone,
  )
  if found:
    rows = compare(found, base=_BASE)
    table = format_rows(rows, "ablation")
    overrides = {name: known[name] for name in configs}
    runs.write_table(workdir, rows, table, found, failures, overrides=overrides)
  runs.exit_on_failures(failures)


if __name__ == "__main__":
  main()
