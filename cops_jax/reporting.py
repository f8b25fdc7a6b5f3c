"""What an evaluation found, as tables, files and pictures."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from cops_jax.files import write_file
from cops_jax.metrics import METRICS
from cops_jax.tables import align
from cops_jax.typing import Float, Integer

_TILE_PIXELS = 160
_MARGIN_PIXELS = 6
_TITLE_PIXELS = 16
# From low to high; black to white through red, and grows lighter all the way.
_HEAT_COLORS = np.array(
  [(0, 0, 8), (60, 15, 110), (180, 40, 90), (245, 125, 20), (252, 255, 165)]
)


@dataclasses.dataclass(frozen=True)
class ImageResult:
  """One evaluated image, a row of scores.csv."""

  dataset: str
  category: str
  path: str
  label: int
  image_score: float


@dataclasses.dataclass(frozen=True)
class Picture:
  """One image for the picture sheet."""

  category: str
  image_score: float
  sort_key: int
  image: Integer[np.ndarray, "h w 3"]
  mask: Integer[np.ndarray, "h w"]
  anomaly_map: Float[np.ndarray, "h w"]


@dataclasses.dataclass(frozen=True)
class DatasetResult:
  """A data set's metrics, in [0, 1]; NaN where undefined.

  Attributes:
    categories: metrics of each category, its images and pixels pooled.
    images: sorted by category and path.
    pictures: of some anomalous images of each category.
    skipped: files that could not be read, left out of everything, and why.
  """

  categories: Mapping[str, Mapping[str, float]]
  images: Sequence[ImageResult]
  pictures: Sequence[Picture]
  skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def mean(self) -> dict[str, float]:
    """Mean over the categories where a metric is defined, equally weighted."""
    means = {}
    for name in METRICS:
      values = [row[name] for row in self.categories.values()]
      values = [value for value in values if not math.isnan(value)]
      means[name] = float(np.mean(values)) if values else math.nan
    return means


def _rows(
  results: Mapping[str, DatasetResult],
) -> Iterator[tuple[str, str, Mapping[str, float]]]:
  for name, result in results.items():
    for category, row in result.categories.items():
      yield name, category, row
    yield name, "mean", result.mean


def format_table(results: Mapping[str, DatasetResult]) -> str:
  """A table to read, in percent; `n/a` where a metric is undefined."""
  lines = [
    ("data set", "category", *(name.replace("_", " ") for name in METRICS))
  ]
  for name, category, row in _rows(results):
    values = (row[metric] for metric in METRICS)
    lines.append(
      (
        name,
        category,
        *("n/a" if math.isnan(value) else f"{value:.1%}" for value in values),
      )
    )
  texts = align(lines, num_text_columns=2)
  rule = "-" * max(map(len, texts))
  ruled = [texts[0], rule]
  for text, line in zip(texts[1:], lines[1:], strict=True):
    ruled += [rule, text, rule] if line[1] == "mean" else [text]
  ruled += [
    f"{name}: {len(result.skipped)} of"
    f" {len(result.images) + len(result.skipped)} images left out, as they"
    " could not be read: see results.json"
    for name, result in results.items()
    if result.skipped
  ]
  return "\n".join(ruled)


def write_results(
  workdir: pathlib.Path,
  results: Mapping[str, DatasetResult],
  provenance: Mapping[str, str],
) -> list[pathlib.Path]:
  """Writes results.json, results.csv, scores.csv and pictures/NAME.png.

  In the files metrics are in [0, 1], and undefined ones are left out or empty.
  `provenance` says in results.json what was evaluated.

  Returns:
    The picture sheets' paths.
  """
  defined = {
    name: {
      "mean": _defined(result.mean),
      "categories": {
        category: _defined(row) for category, row in result.categories.items()
      },
      "skipped_files": dict(result.skipped),
    }
    for name, result in results.items()
  }
  write_file(
    workdir / "results.json",
    json.dumps({**provenance, "datasets": defined}, indent=2) + "\n",
  )
  _write_csv(
    workdir / "results.csv",
    ("dataset", "category", *METRICS),
    (
      (name, category, *(_defined(row).get(metric, "") for metric in METRICS))
      for name, category, row in _rows(results)
    ),
  )
  _write_csv(
    workdir / "scores.csv",
    [field.name for field in dataclasses.fields(ImageResult)],
    (
      dataclasses.astuple(image)
      for result in results.values()
      for image in result.images
    ),
  )
  sheets = []
  for name, result in results.items():
    if result.pictures:
      sheets.append(workdir / "pictures" / f"{name}.png")
      write_file(sheets[-1], picture_sheet(result.pictures))
  return sheets


def _defined(row):
  return {name: value for name, value in row.items() if not math.isnan(value)}


def _write_csv(path, header, rows):
  file = io.StringIO()
  writer = csv.writer(file, lineterminator="\n")
  writer.writerow(header)
  writer.writerows(rows)
  write_file(path, file.getvalue())


def picture_sheet(pictures: Sequence[Picture]) -> bytes:
  """Image, mask and anomaly map side by side; a row for each category.

  The maps of a category share one colour scale, from its lowest to its highest
  value shown, square-rooted so that weak responses show too.

  Returns:
    A PNG file's bytes.
  """
  from PIL import Image, ImageDraw

  categories = list(dict.fromkeys(picture.category for picture in pictures))
  rows = [
    [picture for picture in pictures if picture.category == category]
    for category in categories
  ]
  cell_width = 3 * _TILE_PIXELS + 2 * _MARGIN_PIXELS
  cell_height = _TITLE_PIXELS + _TILE_PIXELS + _MARGIN_PIXELS
  columns = max(map(len, rows))
  sheet = Image.new(
    "RGB",
    (
      columns * cell_width + _MARGIN_PIXELS,
      len(rows) * cell_height + _MARGIN_PIXELS,
    ),
    "white",
  )
  draw = ImageDraw.Draw(sheet)
  for row_index, row in enumerate(rows):
    maps = np.stack([picture.anomaly_map for picture in row])
    low, high = maps.min(), maps.max()
    for column, picture in enumerate(row):
      left = _MARGIN_PIXELS + column * cell_width
      top = _MARGIN_PIXELS + row_index * cell_height
      draw.text(
        (left, top),
        f"{picture.category}, image score {picture.image_score:.2f}",
        fill="black",
      )
      scaled = (picture.anomaly_map - low) / max(high - low, 1e-12)
      tiles = (picture.image, picture.mask * 255, _heat(np.sqrt(scaled)))
      for index, tile in enumerate(tiles):
        sheet.paste(
          Image.fromarray(tile.astype(np.uint8))
          .convert("RGB")
          .resize((_TILE_PIXELS, _TILE_PIXELS)),
          (left + index * _TILE_PIXELS, top + _TITLE_PIXELS),
        )
  file = io.BytesIO()
  sheet.save(file, "PNG")
  return file.getvalue()


def _heat(values):
  positions = np.linspace(0, 1, len(_HEAT_COLORS))
  return np.stack(
    [np.interp(values, positions, channel) for channel in _HEAT_COLORS.T],
    axis=-1,
  )
