"""Puts the results of several work directories, such as seeds, into one table.

  cops compare runs/seed0 runs/seed1 runs/seed2

shows each run's, their mean and their standard deviation.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cops_jax.commands import command_line, make_parser
from cops_jax.paths import to_path


def _parser() -> argparse.ArgumentParser:
  parser = make_parser("compare", __doc__)
  parser.add_argument("workdirs", nargs="+", type=to_path, help="of the runs")
  parser.add_argument("--csv", type=to_path, help="a file to write too")
  return parser


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
  """The command line."""
  options = _parser().parse_args(arguments)
  from cops_jax.reporting.tables import compare, write_csv
  from cops_jax.tables import align

  rows = compare(options.workdirs)
  if options.csv:
    write_csv(options.csv, rows[0], rows[1:])
  print("\n".join(align(rows, num_text_columns=2)))
