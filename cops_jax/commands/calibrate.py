"""Chooses the thresholds of a run's verdicts and keeps them with it.

  cops calibrate --workdir=runs/visa --data=folder:/data/screws
  cops calibrate --workdir=runs/visa --data=btad --false_alarms=0.01
  cops calibrate --workdir=runs/visa --normal photos/*.jpg

With labelled data the image threshold is that of the largest balanced accuracy,
which weighs normal and anomalous images equally however many there are of each,
and the pixel threshold that of the largest F1. With --false_alarms, or with
normal images alone, both are those that no more than this share of the normal
images reaches. The errors that the images show are printed and kept, with their
confidence intervals.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cops_jax.commands import (
  add_allow_other_clip,
  command_line,
  make_parser,
)
from cops_jax.errors import InputError
from cops_jax.progress import show_messages

_FALSE_ALARMS = 0.01


def _parser() -> argparse.ArgumentParser:
  parser = make_parser("calibrate", __doc__)
  parser.add_argument("--workdir", required=True, help="of a training run")
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
  add_allow_other_clip(parser)
  return parser


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
  """The command line."""
  options = _parser().parse_args(arguments)
  show_messages()
  rate = options.false_alarms
  if rate is not None and not 0 <= rate < 1:
    raise InputError(f"--false_alarms is {rate}, expected from 0 to below 1")
  from cops_jax import calibrate, thresholds
  from cops_jax.detector import AnomalyDetector
  from cops_jax.images.decoding import find_images

  detector = AnomalyDetector.from_workdir(
    options.workdir, allow_other_clip=options.allow_other_clip
  )
  if options.normal:
    rate = _FALSE_ALARMS if rate is None else rate
    paths = find_images(options.normal)
    chosen = calibrate.from_normal_images(detector, paths, rate)
  else:
    from cops_jax import datasets

    examples = datasets.load(options.data, "test", options.data_dir)
    chosen = calibrate.from_labelled_data(detector, examples, rate)
  path = thresholds.write_thresholds(options.workdir, chosen)
  print(
    f"image threshold {chosen.image:.4f}, pixel threshold {chosen.pixel:.4f}:"
    f" {chosen.method}"
  )
  for name, errors in (
    ("false alarms", chosen.false_alarms),
    ("misses", chosen.misses),
  ):
    if errors:
      print(f"{name}: {errors}")
  print(f"Counted on the images that they were chosen by.\nkept in {path}")
