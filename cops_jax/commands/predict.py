r"""Finds anomalies in your own images, without masks or labels.

  cops predict photos/ more/*.jpg --workdir=runs/visa --out=found
  cops predict photos/ --pretrained=cops-visa

Prints a JSON line for each image: its path, image_score, verdict, threshold,
how the threshold was chosen, and boxes (left, top, right, bottom in pixels)
around anomalous regions. "note" lists assumptions made in reading the image.
Verdicts need thresholds: choose them with `cops calibrate`.

If an image cannot be read, its line has "error", the other images are scored,
and the exit code is 1. Images of unsupported formats in a folder are skipped
and counted.

With --out, also writes predictions.jsonl, predictions.csv and a report,
index.html, with pictures of the images and their anomaly maps. Replaces the
files that an earlier command wrote there, and keeps all other files.

To compare the images with hand-written texts, without a run:

  cops predict photos/ --clip=openai/clip-vit-large-patch14-336 \
    --normal="a clean weld" --anomalous="a weld with a crack"

To also compare the images with a few normal images of the same product:

  cops predict photos/ --workdir=runs/visa --normal_images=photos/good

The model sees a large photograph at reduced size, where a defect of a few
pixels vanishes. --tiles=auto also scores tiles of the photograph; "tiles" in a
line states their rows and columns. Verdicts then need thresholds that
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
  parser.add_argument(
    "images", nargs="+", help="files, folders and patterns of images"
  )
  parser.add_argument(
    "--out",
    type=to_path,
    metavar="FOLDER",
    help="write a report to this folder",
  )
  parser.add_argument(
    "--save_maps",
    action="store_true",
    help="also write each anomaly map to --out, as .npy in float32 at the size"
    " of the image",
  )
  parser.add_argument(
    "--max_megapixels",
    type=float,
    help="reject larger images before they are decoded; default:"
    " input.max_image_megapixels of the run's config",
  )
  parser.add_argument(
    "--bits_per_channel",
    type=int,
    choices=range(8, 33),
    metavar="BITS",
    help="set how many bits of a channel the camera uses in images of more than"
    " 8 bits; default: the number that the file declares, or"
    " input.bits_per_channel of the run's config",
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
      "the images include reference images (--normal_images), which get low"
      " scores: %d",
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
      "no verdicts: no thresholds were chosen for these prompts; choose them"
      " with: cops calibrate %s --normal GOOD%s%s%s",
      prompts,
      " --normal_images=..." if same else "",
      f" --tiles={tiles}" if tiles else "",
      out + (" and the same texts" if options.clip else ""),
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
