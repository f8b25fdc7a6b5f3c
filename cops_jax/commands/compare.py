"""Compares the results of several runs, such as several seeds, in one table.

  cops compare runs/seed0 runs/seed1 runs/seed2

The table has a row for each run. It also has the mean and standard deviation
over the runs of each method.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cops_jax.commands import command_line, make_parser
from cops_jax.paths import to_path


def _parser() -> argparse.ArgumentParser:
  parser = make_parser("compare", __doc__)
  parser.add_argument(
    "workdirs", nargs="+", type=to_path, help="run directories to compare"
  )
  parser.add_argument(
    "--csv", type=to_path, metavar="FILE", help="also write the table as CSV"
  )
  return parser


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
  options = _parser().parse_args(arguments)
  from cops_jax.reporting import comparison, tables

  runs, methods = {}, {}
  for workdir in dict.fromkeys(options.workdirs):
    content = tables.read_results(workdir)
    runs[str(workdir)] = {workdir: content}
    method = content.get("config", {}).get("method", "")
    methods.setdefault(method, {})[workdir] = content
  for method, contents in methods.items():
    if len(contents) > 1:
      name = f"mean of {method}" if len(methods) > 1 else "mean"
      runs[name] = contents
  rows = comparison.compare(runs)
  if options.csv:
    comparison.write_rows(options.csv, rows)
  print(comparison.format_rows(rows, "run"))
