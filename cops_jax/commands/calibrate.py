"""Chooses the thresholds of verdicts and keeps them with the prompts.

  cops calibrate --workdir=runs/visa --data=folder:/data/screws
  cops calibrate --workdir=runs/visa --data=btad --false_alarms=0.01
  cops calibrate --workdir=runs/visa --normal photos/*.jpg
  cops calibrate --pretrained=OWNER/visa --out=visa --normal photos/*.jpg

With labelled data the image threshold is that of the largest balanced accuracy,
which weighs normal and anomalous images equally however many there are of each,
and the pixel threshold that of the largest F1. With --false_alarms, or with
normal images alone, both are those that no more than this share of the normal
images reaches. The errors that the images show are printed and kept, with their
confidence intervals. Pretrained prompts of the Hugging Face hub get them in a
copy, the folder --out, which `--pretrained` then takes. Thresholds are for
images looked at in the same way: give --tiles here and to predict, or to
neither.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cops_jax.commands import command_line, flags, make_parser
from cops_jax.errors import InputError
from cops_jax.progress import show_messages
from cops_jax.tables import shorten_list

_FALSE_ALARMS = 0.01


def _parser() -> argparse.ArgumentParser:
  parser = make_parser("calibrate", __doc__)
  flags.add_prompts(parser)
  parser.add_argument(
    "--out",
    help="with --pretrained, the folder that becomes a copy of it with the"
    " thresholds; by default a folder given there keeps them itself",
  )
  group = parser.add_mutually_exclusive_group(required=True)
  group.add_argument(
    "--data", help="labelled data: a data set, folder:PATH or meta_json:PATH"
  )
  group.add_argument(
    "--normal", nargs="+", help="files, folders and patterns of normal images"
  )
  parser.add_argument(
    "--false_alarms",
    type=float,
    help="share of the normal images that may be called anomalous; by default"
    f" balanced accuracy decides, and with --normal {_FALSE_ALARMS}",
  )
  parser.add_argument("--data_dir", help="where TFDS keeps prepared data sets")
  flags.add(parser, "--tiles")
  return parser


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
  parser = _parser()
  options = parser.parse_args(arguments)
  if options.out and not options.pretrained:
    parser.error("--out needs --pretrained: a run keeps its own thresholds")
  show_messages()
  rate = options.false_alarms
  if rate is not None and not 0 <= rate < 1:
    raise InputError(f"--false_alarms is {rate}, expected from 0 to below 1")
  from cops_jax import calibrate, publish, thresholds
  from cops_jax.images.finding import find_images
  from cops_jax.images.tiles import normalize
  from cops_jax.weights.locate import split_hub_name

  tiles = normalize(options.tiles)
  out = options.out or options.pretrained
  if options.pretrained:
    if split_hub_name(out):
      parser.error(f"{out} cannot be written: give a folder, --out=FOLDER")
    publish.require_replaceable(out)
  detector = flags.open_detector(options)
  if options.normal:
    rate = _FALSE_ALARMS if rate is None else rate
    paths = find_images(options.normal)
    chosen = calibrate.from_normal_images(detector, paths, rate, tiles)
  else:
    from cops_jax import datasets

    examples = datasets.load(options.data, "test", options.data_dir)
    for note in shorten_list(examples.notes):
      print(f"{examples.name}: {note}")
    chosen = calibrate.from_labelled_data(detector, examples, rate, tiles)
  if options.pretrained:
    path = publish.change_thresholds(options.pretrained, out, chosen)
  else:
    path = thresholds.write_thresholds(options.workdir, chosen)
  print(
    f"image threshold {chosen.image:.4f}, pixel threshold {chosen.pixel:.4f}:"
    f" {chosen.method}"
  )
  for name, errors in chosen.errors.items():
    print(f"{name}: {errors}")
  print(f"Counted on the images that they were chosen by.\nkept in {path}")
