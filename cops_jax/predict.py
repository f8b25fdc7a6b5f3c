r"""Finds anomalies in your own images, without masks or labels.

  python -m cops_jax.predict photos/ more/*.jpg --workdir=runs/visa --out=found

Prints a JSON line for each image: path, image_score, verdict, threshold, how it
was chosen, boxes (left, top, right, bottom in pixels) around anomalous regions.
With --out also writes predictions.jsonl and a picture of each image with the
anomaly map over it. Photographs are turned upright first, as their EXIF data
say. An image that cannot be read has a line with "error", the rest goes on, and
the exit code is 1. Verdicts need thresholds: `python -m cops_jax.calibrate`.

  python -m cops_jax.predict photos/ --clip=openai/clip-vit-large-patch14-336 \
    --normal="a clean weld" --anomalous="a weld with a crack"

needs no run: it compares images with hand-written texts.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cops_jax.commands import (
  add_allow_other_clip,
  add_clip,
  command_line,
  load_clip_detector,
)
from cops_jax.detector import AnomalyDetector, Detection
from cops_jax.errors import InputError, shorten
from cops_jax.files import write_file
from cops_jax.images.decoding import (
  MAX_PIXELS,
  find_images,
  open_image,
  to_picture,
)
from cops_jax.images.drawing import overlay, to_file
from cops_jax.paths import is_address, to_path
from cops_jax.progress import Progress, show_messages
from cops_jax.thresholds import full_heat

_logger = logging.getLogger("cops_jax.predict")  # Not "__main__".
_MAX_NAME_BYTES = 200  # Of 255, less a number and what is appended.


def predict(
  detector: AnomalyDetector, paths: Sequence[pathlib.Path]
) -> Iterator[tuple[pathlib.Path, Detection | InputError]]:
  """Detections by path, in order; or why an image cannot be read."""
  size = detector.max_batch_size
  for start in range(0, len(paths), size):
    part = paths[start : start + size]
    outcomes, decoded = {}, {}
    for path in part:
      try:
        decoded[path] = detector.decode(path)
      except InputError as error:
        outcomes[path] = error
    found = detector.detect(list(decoded.values()))
    outcomes |= zip(decoded, found, strict=True)
    for path in part:
      yield path, outcomes[path]


def to_row(
  path: pathlib.Path, outcome: Detection | InputError
) -> dict[str, Any]:
  """An image's line, of JSON's types."""
  if isinstance(outcome, InputError):
    return {"path": str(path), "error": str(outcome)}
  row = {"path": str(path), "image_score": round(outcome.image_score, 6)}
  if outcome.thresholds is None:
    names = ("verdict", "threshold", "threshold_method", "boxes")
    return row | dict.fromkeys(names)
  return {
    **row,
    "verdict": "anomaly" if outcome.is_anomaly else "normal",
    "threshold": outcome.thresholds.image,
    "threshold_method": outcome.thresholds.method,
    "boxes": outcome.boxes,
  }


def heatmap(
  path: pathlib.Path, detection: Detection, max_pixels: int = MAX_PIXELS
) -> bytes:
  """The image, at its own size, under its anomaly map's colours, as a PNG.

  See `thresholds.full_heat`.
  """
  from PIL import Image

  high = full_heat(detection.thresholds)
  with open_image(path, max_pixels) as image:
    pixels = np.asarray(to_picture(image))
  shown = overlay(pixels, detection.anomaly_map, 0.0, high)
  # Level 1 takes a fifth of the default's time on a photograph.
  return to_file(Image.fromarray(shown), "PNG", compress_level=1)


def _names(paths):
  """A file name for each path, unique: the path below what all share."""
  paths = [pathlib.Path(os.path.normpath(path.absolute())) for path in paths]
  root = pathlib.Path(os.path.commonpath([path.parent for path in paths]))
  names = {}
  for path in paths:
    stem = "-".join(path.relative_to(root).with_suffix("").parts)
    stem = stem.encode()[:_MAX_NAME_BYTES].decode(errors="ignore")
    name, number = stem, 1
    while name in names:
      number += 1
      name = f"{stem}-{number}"
    names[name] = path
  return list(names)


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m cops_jax.predict",
    description=__doc__.partition("\n")[0],
    allow_abbrev=False,
  )
  parser.add_argument("images", nargs="+", help="files, folders and patterns")
  parser.add_argument("--out", type=to_path, help="folder for pictures")
  parser.add_argument(
    "--save_maps",
    action="store_true",
    help="write each anomaly map to --out too: .npy, float32, the image's size",
  )
  parser.add_argument(
    "--max_megapixels",
    type=float,
    help="larger images are not decoded; by default the run's own limit,"
    f" {MAX_PIXELS / 1e6:g} unless its config says another",
  )
  parser.add_argument("--workdir", help="of a training run")
  add_clip(parser)
  add_allow_other_clip(parser)
  options = parser.parse_args(arguments)
  if options.save_maps and not options.out:
    parser.error("--save_maps needs --out")
  show_messages()
  paths = find_images(options.images)
  detector = load_clip_detector(options, parser)
  if bool(detector) == bool(options.workdir):
    parser.error("give either --workdir or --clip")
  detector = detector or AnomalyDetector.from_workdir(
    options.workdir, allow_other_clip=options.allow_other_clip
  )
  if options.max_megapixels:
    detector.max_pixels = int(options.max_megapixels * 1e6)
  num_failed = _run(detector, paths, options.out, options.save_maps)
  if num_failed:
    sys.exit(f"{num_failed} of {len(paths)} images cannot be read")


def _run(detector, paths, out, save_maps):
  if detector.thresholds is None:
    _logger.info("no verdicts: no thresholds were chosen for these prompts yet")
  if out:
    _require_apart(out, paths)
  names = _names(paths)
  progress = Progress(len(paths), "images")
  rows = []
  try:
    for path, outcome in predict(detector, paths):
      if out and isinstance(outcome, Detection):
        name = names[len(rows)]
        outcome = _write_pictures(
          out / name, path, outcome, save_maps, detector.max_pixels
        )
      rows.append(to_row(path, outcome))
      print(json.dumps(rows[-1]), flush=True)
      progress.update(len(rows), "predicting")
  finally:  # Also what was found before an interruption.
    if out:
      text = "".join(json.dumps(row) + "\n" for row in rows)
      write_file(out / "predictions.jsonl", text)
  return sum("error" in row for row in rows)


def _require_apart(out, paths):
  if is_address(out):
    return
  for path in paths:
    if out.resolve() in path.resolve().parents:
      raise InputError(
        f"--out={out} holds images to look at, such as {path}, which pictures"
        " could replace: choose another folder"
      )


def _write_pictures(stem, path, detection, save_maps, max_pixels):
  """Gives the detection, or why the image can no longer be read."""
  try:
    picture = heatmap(path, detection, max_pixels)
  except Exception as error:  # PIL raises many kinds of errors.
    return InputError(f"{path} cannot be read any more: {shorten(error)}")
  write_file(stem.with_name(f"{stem.name}.png"), picture)
  if save_maps:
    file = io.BytesIO()
    np.save(file, detection.anomaly_map)
    write_file(stem.with_name(f"{stem.name}.npy"), file.getvalue())
  return detection


if __name__ == "__main__":
  main()
