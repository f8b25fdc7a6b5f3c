r"""Chooses the thresholds of verdicts and keeps them with the prompts.

  cops calibrate --workdir=runs/visa --data=folder:/data/screws
  cops calibrate --workdir=runs/visa --data=btad --false_alarms=0.01
  cops calibrate --workdir=runs/visa --normal photos/*.jpg
  cops calibrate --workdir=runs/visa --normal photos/good --anomalous photos/bad
  cops calibrate --pretrained=cops-visa --out=visa --normal photos/*.jpg
  cops calibrate --clip=openai/clip-vit-large-patch14-336 --out=weld \
    --normal photos/good "a clean weld" --anomalous "a weld with a crack"

With both kinds of images the image threshold is that of the largest balanced
accuracy, which weighs normal and anomalous images equally however many there
are of each, and the pixel threshold that of the largest F1; without masks it is
one that no more of the normal images reach than the image threshold. With
--false_alarms, or with normal images alone, both are those that no more than
this share of the normal images reaches. The errors that the images show are
printed and kept, with their confidence intervals.

A run keeps its thresholds. Prompts that are downloaded, and texts with --clip,
get them in the folder --out, which `--pretrained` then takes. Those of several
--tiles are kept beside each other, and a verdict is by those of the same tiles.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from cops_jax.commands import command_line, flags, make_parser
from cops_jax.errors import InputError, UsageError
from cops_jax.progress import show_messages
from cops_jax.tables import shorten_list

_FALSE_ALARMS = 0.01


def _parser() -> argparse.ArgumentParser:
  parser = make_parser("calibrate", __doc__)
  flags.add_prompts(parser)
  parser.add_argument(
    "--out",
    help="with --pretrained or --clip, the folder that gets the prompts with"
    " the thresholds; by default a folder given to --pretrained keeps them",
  )
  parser.add_argument(
    "--data", help="labelled data: a data set, folder:PATH or meta_json:PATH"
  )
  for kind in ("normal", "anomalous"):
    parser.add_argument(
      f"--{kind}",
      nargs="+",
      action="extend",
      default=[],
      metavar="IMAGES",
      help=f"files, folders and patterns of {kind} images; with --clip a value"
      " that is none of these is a text, as for predict",
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


def _find_images(parser, options):
  """Returns normal and anomalous images; leaves the texts to the options."""
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
      print(f"texts, as no file has such a name: {kind} {', '.join(texts)}")
  normal, anomalous = found
  if bool(options.data) == bool(normal or anomalous):
    parser.error("give either --data or images, --normal GOOD")
  if anomalous and not normal:
    parser.error("--anomalous needs normal images too, --normal GOOD")
  both = set(map(os.path.realpath, normal)) & set(
    map(os.path.realpath, anomalous)
  )
  if both:
    raise InputError(
      f"{len(both)} images are given as normal and as anomalous, such as"
      f" {min(both)}"
    )
  return normal, anomalous


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
  parser = _parser()
  options = parser.parse_args(arguments)
  if options.out and options.workdir:
    parser.error("--out is not for --workdir: a run keeps its own thresholds")
  if options.clip and not options.out:
    parser.error("--clip needs a folder for its thresholds, --out=FOLDER")
  show_messages()
  rate = options.false_alarms
  if rate is not None and not 0 <= rate < 1:
    raise UsageError(f"--false_alarms is {rate}, expected from 0 to below 1")
  from cops_jax import calibrate, publish, thresholds
  from cops_jax.files import exists
  from cops_jax.images.tiles import normalize
  from cops_jax.weights import published

  tiles = normalize(options.tiles)
  normal, anomalous = _find_images(parser, options)
  out = options.out or options.pretrained
  if out:
    if not (options.out or exists(out)):
      parser.error(f"{out} is no folder here: give one, --out=FOLDER")
    publish.require_replaceable(out)
  detector = flags.open_detector(options)
  own = {*map(os.path.realpath, options.normal_images)}
  if same := own & {*map(os.path.realpath, normal)}:
    raise InputError(
      f"{len(same)} images are given as --normal and as --normal_images, such"
      f" as {min(same)}. They do not differ from themselves, so thresholds"
      " would be far too low: calibrate on other normal images."
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
  print(f"Counted on the images that they were chosen by.\n{kept}")
