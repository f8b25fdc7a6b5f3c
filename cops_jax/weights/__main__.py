"""CLIP weights and trained prompts, in and out.

  python -m cops_jax.weights export --workdir=runs/demo --out=prompts.pth
  python -m cops_jax.weights inspect prompts.pth

`export` writes a run's newest prompts as one file: .safetensors or, for the
authors' code, .pth. `inspect` prints what a file of weights holds, without
running any of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cops_jax.commands import command_line
from cops_jax.weights import export, inspect


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m cops_jax.weights",
    description=__doc__.partition("\n")[0],
    allow_abbrev=False,
  )
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
  options = parser.parse_args(arguments)
  if options.command == "export":
    print(export(options.workdir, options.out))
  else:
    print(inspect(options.file))


if __name__ == "__main__":
  main()
