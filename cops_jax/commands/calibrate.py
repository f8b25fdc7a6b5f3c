r"""Chooses the thresholds for verdicts and stores them with the prompts.

  cops calibrate --workdir=runs/visa --data=folder:/data/screws
  cops calibrate --workdir=runs/visa --data=btad --false_alarms=0.01
  cops calibrate --workdir=runs/visa --normal photos/*.jpg
  cops calibrate --workdir=runs/visa --normal photos/good --anomalous photos/bad
  cops calibrate --pretrained=cops-visa --out=visa --normal photos/*.jpg
  cops calibrate --clip=openai/clip-vit-large-patch14-336 --out=weld \
    --normal photos/good "a clean weld" --anomalous "a weld with a crack"

Given normal and anomalous images, chooses the image threshold with the largest
balanced accuracy, which weighs both kinds equally in any proportion, and the
pixel threshold with the largest F1. Without masks, at most as many normal
images reach the pixel threshold as reach the image threshold.

With --false_alarms, or with normal images only, at most this share of the
normal images reaches each threshold. The error rates on these images are
printed and stored, with their confidence intervals.

The thresholds of a run are stored in its run directory. For downloaded prompts
and for texts with --clip, --out names a folder for prompts and thresholds,
which --pretrained then accepts. Each value of --tiles has its own thresholds,
and a verdict uses those that were chosen with the same tiles.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from cops_jax.commands import command_line, flags, make_parser
from cops_jax.errors import InputError, UsageError
from cops_jax.progress import show_messages
from cops_jax.tables import count_of, shorten_list

_FALSE_ALARMS = 0.01


def _parser() -> argparse.ArgumentParser:
  parser = make_parser("calibrate", __doc__)
  flags.add_prompts(parser)
  parser.add_argument(
    "--out",
    metavar="FOLDER",
    help="write the prompts with their thresholds to this folder; needs"
    " --pretrained or --clip; default: the folder that --pretrained names",
  )
  parser.add_argument(
    "--data",
    help="choose the thresholds on labelled images: a data set's name,"
    " folder:PATH or meta_json:PATH",
  )
  for kind in ("normal", "anomalous"):
    parser.add_argument(
      f"--{kind}",
      nargs="+",
      action="extend",
      default=[],
      metavar="IMAGES",
      help=f"choose the thresholds on these {kind} images: files, folders and"
      " patterns; with --clip, any other value is a text, as in `cops predict`",
    )
  parser.add_argument(
    "--false_alarms",
    type=float,
    metavar="SHARE",
    help="accept this share of false alarms among the normal images; default:"
    f" {_FALSE_ALARMS} with normal images only; otherwise the largest balanced"
    " accuracy decides",
  )
  parser.add_argument(
    "--data_dir",
    help="read prepared data sets from this folder; default:"
    " ~/tensorflow_datasets",
  )
  flags.add(parser, "--tiles")
  return parser


def _find_images(parser, options):
  """Returns normal and anomalous images; leaves only texts in the options."""
  from cops_jax.images import finding

  found = []
  for kind in ("normal", "anomalous"):
    values = getattr(options, kind)
    places = [
      value for value in values if not options.clip or finding.is_place(value)
    ]
    found.append(finding.find_images(places))
    texts = [value for value in values if value not in places]
    setattr(options, kind, texts)
    if texts:
      print(f"used as {kind} texts (no such files): {', '.join(texts)}")
  normal, anomalous = found
  if bool(options.data) == bool(normal or anomalous):
    parser.error("set either --data or --normal with images")
  if anomalous and not normal:
    parser.error("--anomalous needs normal images too: set --normal")
  both = set(map(os.path.realpath, normal)) & set(
    map(os.path.realpath, anomalous)
  )
  if both:
    raise InputError(
      f"--normal and --anomalous have {count_of(len(both), 'image')} in common,"
      f" such as {min(both)}. List each image under one flag only."
    )
  return normal, anomalous


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
  parser = _parser()
  options = parser.parse_args(arguments)
  if options.out and options.workdir:
    parser.error(
      "--out does not apply to --workdir: a run stores its own thresholds"
    )
  if options.clip and not options.out:
    parser.error("--clip needs a folder for its thresholds: set --out")
  show_messages()
  rate = options.false_alarms
  if rate is not None and not 0 <= rate < 1:
    raise UsageError(f"--false_alarms is {rate}; expected 0 or more, below 1")
  from cops_jax import calibrate, publish, thresholds
  from cops_jax.files import exists
  from cops_jax.images.tiles import normalize
  from cops_jax.weights import published

  tiles = normalize(options.tiles)
  normal, anomalous = _find_images(parser, options)
  out = options.out or options.pretrained
  if out:
    if not (options.out or exists(out)):
      parser.error(f"{out} is not a local folder: set --out to one")
    publish.require_replaceable(out)
  detector = flags.open_detector(options)
  own = {*map(os.path.realpath, options.normal_images)}
  if same := own & {*map(os.path.realpath, normal)}:
    raise InputError(
      f"--normal and --normal_images have {count_of(len(same), 'image')} in"
      f" common, such as {min(same)}. Reference images get low scores, so the"
      " thresholds would be too low. Calibrate on other normal images."
    )
  if normal:
    if rate is None and not anomalous:
      rate = _FALSE_ALARMS
    chosen = calibrate.from_images(detector, normal, anomalous, rate, tiles)
  else:
    from cops_jax import datasets

    examples = datasets.load(options.data, "test", options.data_dir)
    for note in shorten_list(examples.notes):
      print(f"{examples.name}: {note}")
    chosen = calibrate.from_labelled_data(detector, examples, rate, tiles)
  if options.workdir:
    kept = thresholds.write_thresholds(options.workdir, chosen)
  elif options.clip or published.is_name(options.pretrained):
    kept = publish.write_detector(detector, out, chosen)
  else:
    kept = publish.add_thresholds(options.pretrained, out, chosen)
  print(chosen)
  for name, errors in chosen.errors.items():
    print(f"{name}: {errors}")
  print(f"Counted on the same images that chose the thresholds.\n{kept}")
