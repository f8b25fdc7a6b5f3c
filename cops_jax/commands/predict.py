r"""Finds anomalies in your own images, without masks or labels.

  cops predict photos/ more/*.jpg --workdir=runs/visa --out=found
  cops predict photos/ --pretrained=cops-visa

Prints a JSON line for each image: path, image_score, verdict, threshold, how it
was chosen, boxes (left, top, right, bottom in pixels) around anomalous regions.
With --out also writes a report to look at, index.html, and beside it pictures
of the images and their anomaly maps, predictions.jsonl and predictions.csv. The
files that an earlier run wrote there are replaced, others are kept. What was
guessed when an image was read is its "note". An image that cannot be read has a
line with "error", the others are scored, and the exit code is 1. Images of
other kinds in folders are skipped and counted. Verdicts need thresholds:
`cops calibrate`.

  cops predict photos/ --clip=openai/clip-vit-large-patch14-336 \
    --normal="a clean weld" --anomalous="a weld with a crack"

needs no run: it compares images with hand-written texts.

  cops predict photos/ --workdir=runs/visa --normal_images=photos/good

also compares them with a few normal images of the same product.

A defect of a few pixels vanishes when a large photograph is shrunk to what the
model sees. With --tiles=auto the photograph is also looked at in tiles, whose
rows and columns the line then says as "tiles"; verdicts need thresholds that
`cops calibrate --tiles=auto` chose.
"""

from __future__ import annotations

import argparse
import collections
import logging
import os
import sys
from collections.abc import Sequence

from cops_jax.commands import command_line, flags, make_parser
from cops_jax.paths import to_path
from cops_jax.progress import show_messages

_logger = logging.getLogger(__name__)


def _parser() -> argparse.ArgumentParser:
  parser = make_parser("predict", __doc__)
  parser.add_argument("images", nargs="+", help="files, folders and patterns")
  parser.add_argument("--out", type=to_path, help="folder for a report")
  parser.add_argument(
    "--save_maps",
    action="store_true",
    help="write each anomaly map to --out too: .npy, float32, the image's size",
  )
  parser.add_argument(
    "--max_megapixels",
    type=float,
    help="larger images are not decoded; by default the limit of the run's"
    " config, input.max_image_megapixels",
  )
  parser.add_argument(
    "--bits_per_channel",
    type=int,
    choices=range(8, 33),
    metavar="BITS",
    help="bits that the camera uses of a channel in images of more than 8 bits;"
    " by default what the file declares, else input.bits_per_channel of the"
    " run's config",
  )
  flags.add_prompts(parser)
  flags.add(parser, "--normal", "--anomalous", "--tiles")
  return parser


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
  parser = _parser()
  options = parser.parse_args(arguments)
  if options.save_maps and not options.out:
    parser.error("--save_maps needs --out")
  flags.require_clip_for_texts(parser, options)
  show_messages()
  from cops_jax.files import exists
  from cops_jax.images.finding import find_images
  from cops_jax.images.tiles import normalize
  from cops_jax.predict import predict_files, summarize

  tiles = normalize(options.tiles)
  skipped = collections.Counter()
  paths = find_images(options.images, options.out, skipped)
  detector = flags.open_detector(options)
  same = set(map(os.path.realpath, options.normal_images))
  if number := sum(os.path.realpath(path) in same for path in paths):
    _logger.info(
      "%d of these images are among the normal ones that they are compared"
      " with, so their scores are low",
      number,
    )
  if not detector.thresholds:
    prompts = next(
      f"--{name}={getattr(options, name)}"
      for name in ("workdir", "pretrained", "clip")
      if getattr(options, name)
    )
    is_kept = options.workdir or exists(options.pretrained or "")
    out = "" if is_kept else " --out=FOLDER"
    _logger.info(
      "no verdicts, as no thresholds were chosen for these prompts; choose"
      " them: cops calibrate %s --normal GOOD%s%s%s",
      prompts,
      " --normal_images=..." if same else "",
      f" --tiles={tiles}" if tiles else "",
      out + (", and the same texts" if options.clip else ""),
    )
  rows = predict_files(
    detector, paths, options.out, options.save_maps, tiles, skipped
  )
  text = summarize(rows, skipped)
  if options.out:
    text += f"; report: {options.out / 'index.html'}"
  if any("error" in row for row in rows):
    sys.exit(text)
  _logger.info("%s", text)
