"""A whole detector as one file that runs without its model's code.

python -m cops_jax.export --workdir=runs/visa --out=visa.cops
python -m cops_jax.export --workdir=runs/visa --out=visa.onnx
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cops_jax.commands import add_allow_other_clip, command_line
from cops_jax.export import export
from cops_jax.files import size_of


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m cops_jax.export",
    description=__doc__.partition("\n")[0],
    allow_abbrev=False,
  )
  parser.add_argument("--workdir", required=True, help="of a training run")
  parser.add_argument(
    "--out", required=True, help="the file to write; NAME.onnx is an ONNX file"
  )
  add_allow_other_clip(parser)
  options = parser.parse_args(arguments)
  from cops_jax.detector import AnomalyDetector

  detector = AnomalyDetector.from_workdir(
    options.workdir, allow_other_clip=options.allow_other_clip
  )
  metadata = export(detector, options.out)
  size = size_of(options.out)
  text = (
    f"{options.out}: {size / 1e6:,.1f} MB, images of"
    f" {metadata['image_size_pixels']} pixels"
  )
  if "platforms" in metadata:
    text += (
      f", for {', '.join(metadata['platforms'])}; to be read by"
      f" {metadata['readable_by']}"
    )
  print(text)


if __name__ == "__main__":
  main()
