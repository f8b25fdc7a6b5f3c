r"""Writes a complete detector to one file that runs without the model's code.

  cops export --workdir=runs/visa --out=visa.cops
  cops export --workdir=runs/visa --out=visa.onnx
  cops export --pretrained=cops-visa --out=visa.cops
  cops export --clip=openai/clip-vit-large-patch14-336 \
    --normal="a clean weld" --anomalous="a weld with a crack" --out=weld.cops
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cops_jax.commands import command_line, flags, make_parser


def _parser() -> argparse.ArgumentParser:
  parser = make_parser("export", __doc__)
  flags.add_prompts(parser)
  flags.add(parser, "--normal", "--anomalous")
  parser.add_argument(
    "--out",
    required=True,
    metavar="FILE",
    help="write the detector to this file: NAME.cops, or NAME.onnx for ONNX",
  )
  return parser


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
  parser = _parser()
  options = parser.parse_args(arguments)
  flags.require_clip_for_texts(parser, options)
  from cops_jax.export import export, require_file_name
  from cops_jax.files import size_of

  require_file_name(options.out)
  detector = flags.open_detector(options)
  metadata = export(detector, options.out)
  text = (
    f"{options.out}: {size_of(options.out) / 1e6:,.1f} MB, images of"
    f" {metadata['image_size_pixels']} pixels"
  )
  if "platforms" in metadata:
    text += (
      f", for {', '.join(metadata['platforms'])}; readable by"
      f" {metadata['readable_by']}"
    )
  print(text)
