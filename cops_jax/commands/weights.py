"""Exports and publishes trained prompts, shows what a file of weights holds.

  cops weights export --workdir=runs/demo --out=prompts.pth
  cops weights publish --workdir=runs/visa --out=published/visa
  cops weights inspect prompts.pth
  cops weights inspect runs/demo

`export` writes a run's newest prompts as one file: .safetensors or, for the
authors' code, .pth. `publish` writes them as a folder that --pretrained takes,
with their config, thresholds and model card, ready for `hf upload`. `inspect`
prints what a file of weights holds, without running any of it; of a run its
newest checkpoint, its config and its CLIP.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cops_jax.commands import command_line, make_parser
from cops_jax.progress import show_messages


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
    "publish", help="write a run's newest prompts as a folder for others"
  )
  command.add_argument("--workdir", required=True, help="of a training run")
  command.add_argument(
    "--out",
    required=True,
    help="the folder: new, empty or of pretrained prompts, which are replaced",
  )
  command.add_argument(
    "--clip",
    default="",
    metavar="OWNER/NAME",
    help="the CLIP of the run on the Hugging Face hub, if the run had it from a"
    " file or folder; it is loaded and its hash compared",
  )
  command = commands.add_parser(
    "inspect", help="print what a file of weights, or a run, holds"
  )
  command.add_argument("path", help="a file of weights or a work directory")
  return parser


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
  """The command line."""
  options = _parser().parse_args(arguments)
  from cops_jax import publish
  from cops_jax.weights import inspection, prompts

  if options.command == "export":
    print(prompts.export(options.workdir, options.out))
  elif options.command == "publish":
    show_messages()
    print(publish.publish(options.workdir, options.out, options.clip))
  else:
    print(inspection.inspect(options.path))
