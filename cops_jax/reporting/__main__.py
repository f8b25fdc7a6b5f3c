"""Results as tables and files.

  python -m cops_jax.reporting compare DIR1 DIR2 ...

puts the results of several work directories, such as seeds of one recipe, into
one table: each run's, their mean and their standard deviation.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cops_jax.commands import command_line
from cops_jax.paths import to_path
from cops_jax.reporting.tables import compare, write_csv
from cops_jax.tables import align


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m cops_jax.reporting",
    description=__doc__.partition("\n")[0],
    allow_abbrev=False,
  )
  commands = parser.add_subparsers(dest="command", required=True)
  command = commands.add_parser(
    "compare", help="put the results of several work directories in one table"
  )
  command.add_argument("workdirs", nargs="+", type=to_path)
  command.add_argument("--csv", type=to_path, help="a file to write too")
  options = parser.parse_args(arguments)
  rows = compare(options.workdirs)
  if options.csv:
    write_csv(options.csv, rows[0], rows[1:])
  print("\n".join(align(rows, num_text_columns=2)))


if __name__ == "__main__":
  main()
