"""Predictions on image files as lines of JSON and as a folder with a report."""

from __future__ import annotations

import collections
import io
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cops_jax.detection import Detection
from cops_jax.detector import AnomalyDetector
from cops_jax.errors import InputError
from cops_jax.files import to_json, write_file
from cops_jax.images import read
from cops_jax.images.drawing import pair, to_file
from cops_jax.images.tiles import WHOLE
from cops_jax.paths import AnyPath, is_address, readable
from cops_jax.progress import Progress
from cops_jax.tables import count_of
from cops_jax.weights.clip import DEMO_CLIP

_THUMBNAIL_PIXELS = 300
# File systems allow 255 bytes; a number and a suffix are appended.
_MAX_NAME_BYTES = 200


def predict(
  detector: AnomalyDetector, paths: Sequence[pathlib.Path], tiles: str = ""
) -> Iterator[tuple[pathlib.Path, Detection | InputError]]:
  """Yields each path, in order, with its image's detection or error.

  Args:
    detector: detector that scores the images.
    paths: paths of the images.
    tiles: tiles to score in addition to each image, see `AnomalyDetector`.

  Raises:
    InputError: if scores are not finite.
  """

  def decode(path):
    try:
      return detector.decode(path, tiles=tiles)
    except InputError as error:
      return error

  return zip(paths, detector.detect(map(decode, paths)), strict=True)


def to_row(
  path: pathlib.Path, outcome: Detection | InputError
) -> dict[str, Any]:
  """Returns the result of one image as a row of values that JSON can hold.

  Args:
    path: path of the image.
    outcome: detection or error, from `predict`.

  Returns:
    The path, and either "error" or "image_score", "verdict", "threshold",
    "threshold_method" and "boxes". Without thresholds the last four are None.
    "note" and "tiles" are present only if the image has notes or tiles.
  """
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
    "verdict": outcome.verdict,
    "threshold": outcome.thresholds.image,
    "threshold_method": outcome.thresholds.method,
    "boxes": outcome.boxes,
  }


def _names(paths):
  """Returns a unique file name without a suffix for each path.

  A name joins the parts of the path below the folder that all paths share.
  """
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
  skipped: Mapping[str, int] | None = None,
) -> list[dict[str, Any]]:
  """Prints a line of JSON for each image, and writes a folder with a report.

  Args:
    detector: detector that scores the images.
    paths: paths of the images.
    out: folder for index.html, predictions.jsonl, predictions.csv and pictures.
      Files of an earlier call are replaced. None writes no files.
    save_maps: if True, also writes the anomaly maps to maps/NAME.npy, float32
      (h, w).
    tiles: tiles to score in addition to each image, see `AnomalyDetector`.
    skipped: numbers of skipped files by suffix, for the summary.

  Returns:
    The images' rows from `to_row`.

  Raises:
    InputError: if `out` contains some of the images or cannot be written, or
      if scores are not finite.

  Example:
    ```python
    detector = AnomalyDetector.from_workdir("runs/visa")
    paths = sorted(pathlib.Path("photos").glob("*.jpg"))
    rows = predict_files(detector, paths, out=pathlib.Path("found"))
    ```
  """
  names = _names(paths)
  if out:
    from cops_jax.reporting import predictions  # Slow to import.

    _require_apart(out, paths)
    pictures = [f"pictures/{name}.jpg" for name in names]
    maps = [f"maps/{name}.npy" for name in names if save_maps]
    predictions.replace_earlier(out, [*predictions.FILES, *pictures, *maps])
  progress = Progress(len(paths), "images")
  rows, thumbnails = [], {}
  try:
    for path, outcome in predict(detector, paths, tiles):
      row = to_row(path, outcome)
      if out and isinstance(outcome, Detection):
        image = read(path, **detector.reading)
        row["picture"] = pictures[len(rows)]
        thumbnails[row["picture"]] = _draw(out / row["picture"], image, outcome)
        if save_maps:
          _write_map(out / maps[len(rows)], outcome.anomaly_map)
      rows.append(row)
      print(to_json(row), flush=True)
      progress.update(len(rows), "predicting")
  finally:  # If interrupted, the report still has the finished images.
    if out:
      is_toy = detector.config.backbone.weights == DEMO_CLIP
      fitting = detector.thresholds_for(tiles)
      summary = summarize(rows, skipped)
      predictions.write(out, rows, thumbnails, summary, fitting, is_toy)
  return rows


def summarize(
  rows: Sequence[Mapping[str, Any]], skipped: Mapping[str, int] | None = None
) -> str:
  """Returns a line with the numbers of anomalies and of normal images."""
  counts = collections.Counter(
    "unreadable" if "error" in row else row["verdict"] for row in rows
  )
  parts = []
  if counts["anomaly"] + counts["normal"]:
    anomalies = count_of(counts["anomaly"], "anomaly")
    parts = [anomalies, f"{counts['normal']} normal"]
  if counts["unreadable"]:
    parts.append(f"{counts['unreadable']} unreadable")
  if skipped:
    total = sum(skipped.values())
    parts.append(f"{total} skipped ({', '.join(sorted(skipped))})")
  images = count_of(len(rows), "image")
  return ": ".join([images, *filter(None, [", ".join(parts)])])


def _require_apart(out, paths):
  if is_address(out):
    return
  for path in paths:
    if out.resolve() in path.resolve().parents:
      raise InputError(
        f"--out={out} contains input images, such as {path}, which could be"
        " overwritten: choose another folder"
      )


def _draw(path, image, detection):
  """Writes an image's picture and returns a small one without a caption."""
  from PIL import Image

  picture = detection.picture(image)
  write_file(path, to_file(picture, "JPEG", quality=90))
  chosen = detection.thresholds
  small = pair(
    image.pixels,
    detection.anomaly_map,
    chosen and chosen.pixel,
    _THUMBNAIL_PIXELS,
  )
  return to_file(Image.fromarray(small), "WEBP", quality=75)


def _write_map(path, anomaly_map):
  file = io.BytesIO()
  np.save(file, anomaly_map)
  write_file(path, file.getvalue())
