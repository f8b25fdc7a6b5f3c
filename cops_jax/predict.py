"""Predictions on image files as lines of JSON and as pictures."""

from __future__ import annotations

import io
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cops_jax.detector import AnomalyDetector, Detection
from cops_jax.errors import InputError
from cops_jax.files import to_json, write_file
from cops_jax.images import UprightImage, read
from cops_jax.images.drawing import annotate, overlay, to_file
from cops_jax.images.tiles import WHOLE
from cops_jax.paths import AnyPath, is_address, readable
from cops_jax.progress import Progress

_MAX_NAME_BYTES = 200  # Of 255: a number and a suffix are appended.


def predict(
  detector: AnomalyDetector, paths: Sequence[pathlib.Path], tiles: str = ""
) -> Iterator[tuple[pathlib.Path, Detection | InputError]]:
  """Returns paths, in order, and detections or why an image cannot be read."""

  def decode(path):
    try:
      return detector.decode(path, tiles=tiles)
    except InputError as error:
      return error

  return zip(paths, detector.detect(map(decode, paths)), strict=True)


def to_row(
  path: pathlib.Path, outcome: Detection | InputError
) -> dict[str, Any]:
  """Returns an image's line, of JSON's types."""
  row = {"path": readable(path)}
  if isinstance(outcome, InputError):
    return row | {"error": str(outcome)}
  row["image_score"] = round(outcome.image_score, 6)
  if outcome.notes:
    row["note"] = "; ".join(outcome.notes)
  if outcome.grid != WHOLE:
    row["tiles"] = "{}x{}".format(*outcome.grid)
  if outcome.thresholds is None:
    names = ("verdict", "threshold", "threshold_method", "boxes")
    return row | dict.fromkeys(names)
  return {
    **row,
    "verdict": _verdict(outcome),
    "threshold": outcome.thresholds.image,
    "threshold_method": outcome.thresholds.method,
    "boxes": outcome.boxes,
  }


def heatmap(image: UprightImage, detection: Detection) -> bytes:
  """Returns an image at its own size under its anomaly map's colours, as PNG.

  Boxes surround anomalous regions, and score and verdict are written below.
  The lightest colour stands for twice the threshold, without thresholds for 1.
  """
  high = 2 * detection.thresholds.pixel if detection.thresholds else 1.0
  shown = overlay(image.pixels, detection.anomaly_map, 0.0, high)
  words = [f"score {detection.image_score:.3f}"]
  if detection.thresholds:
    threshold = f"threshold {detection.thresholds.image:.3f}"
    words = [_verdict(detection), *words, threshold]
  picture = annotate(
    shown, detection.boxes or [], words, bool(detection.is_anomaly)
  )
  # Level 1 takes a fifth of the default's time on a photograph.
  return to_file(picture, "PNG", compress_level=1)


def _verdict(detection):
  return "anomaly" if detection.is_anomaly else "normal"


def _names(paths):
  """Returns unique file names: each path below the folder that all share."""
  paths = [pathlib.Path(os.path.normpath(path.absolute())) for path in paths]
  shared = os.path.commonpath([path.parent for path in paths])
  names = {}
  for path in paths:
    stem = "-".join(path.relative_to(shared).with_suffix("").parts)
    stem = readable(stem).encode()[-_MAX_NAME_BYTES:].decode(errors="ignore")
    name, number = stem, 2
    while name in names:
      name, number = f"{stem}-{number}", number + 1
    names[name] = path
  return list(names)


def predict_files(
  detector: AnomalyDetector,
  paths: Sequence[pathlib.Path],
  out: AnyPath | None = None,
  save_maps: bool = False,
  tiles: str = "",
) -> int:
  """Prints a line for each image, and writes lines and pictures.

  Args:
    detector: scores the images.
    paths: of the images.
    out: folder for predictions.jsonl and pictures; None for no files.
    save_maps: whether to write the anomaly maps there too.
    tiles: see `AnomalyDetector`.

  Returns:
    The number of unreadable images.

  Raises:
    InputError: the folder holds some of the images, or cannot be written.
  """
  if out:
    _require_apart(out, paths)
  names = _names(paths)
  progress = Progress(len(paths), "images")
  rows = []
  try:
    for path, outcome in predict(detector, paths, tiles):
      if out and isinstance(outcome, Detection):
        image = read(path, **detector.reading)
        _write_pictures(out / names[len(rows)], image, outcome, save_maps)
      rows.append(to_row(path, outcome))
      print(to_json(rows[-1]), flush=True)
      progress.update(len(rows), "predicting")
  finally:  # An interruption loses no line.
    if out:
      text = "".join(to_json(row) + "\n" for row in rows)
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


def _write_pictures(stem, image, detection, save_maps):
  picture = heatmap(image, detection)
  write_file(stem.with_name(f"{stem.name}.png"), picture)
  if save_maps:
    file = io.BytesIO()
    np.save(file, detection.anomaly_map)
    write_file(stem.with_name(f"{stem.name}.npy"), file.getvalue())
