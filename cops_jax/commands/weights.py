"""Exports trained prompts, and shows what a file of weights holds.

  cops weights export --workdir=runs/demo --out=prompts.pth
  cops weights inspect prompts.pth

`export` writes a run's newest prompts as one file: .safetensors or, for the
authors' code, .pth. `inspect` prints what a file of weights holds, without
running any of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cops_jax.commands import command_line, make_parser


def _parser() -> argparse.ArgumentParser:
  parser = make_parser("weights", __doc__)
  commands = parser.add_subparsers(dest="command", required=True)
  command = commands.add_parser(
    "export", help="write a run's newest prompts as one file"
  )
  command.add_argument("--workdir", required=True, help="of a training run")
  command.add_argument(
    "--out",
    required=True,
    help="ends in .safetensors or .pth (authors' format)",
  )
  command = commands.add_parser(
    "inspect", help="print what a file of weights holds"
  )
  command.add_argument("file")
  return parser


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
  """The command line."""
  options = _parser().parse_args(arguments)
  from cops_jax import weights

  if options.command == "export":
    print(weights.export(options.workdir, options.out))
  else:
    print(weights.inspect(options.file))
