"""Compares ways to look at large images with small defects: whole, in tiles.

  python -m tools.compare_tiles

Images of the demo's unseen categories are generated at a large size, half of
them with a defect an eighth as long as the demo's, and scored by its own CLIP
and prompts. Rules that join what the whole and its tiles say, scores and maps
alike, are compared by the means over the categories of image AUROC, pixel AUROC
and pixel AP, in percent. docs/images.md has the result.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from cops_jax import metrics
from cops_jax.commands import command_line
from cops_jax.datasets import generated
from cops_jax.demo import load_detector
from cops_jax.detector import AnomalyDetector, DecodedImage, Detection
from cops_jax.images import tiles
from cops_jax.images.decoding import resize_map
from cops_jax.progress import Progress, show_messages
from cops_jax.tables import align

_MAP_SIDE = 500  # Of the maps that are compared, in pixels.
_GRIDS = "2x2,4x4,8x8"
RULES: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
  "tiles alone": lambda whole, tiles: tiles,
  "larger of both": np.maximum,
  "mean of both": tiles.combine,
}
_METRICS = ("image_auroc", "pixel_auroc", "pixel_ap")


def _images(
  category: str, number: int, size: int, defect_scale: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Normal and anomalous images by turns, `number` of each, with masks."""
  for index in range(number):
    for defect in (
      None,
      list(generated.DEFECTS)[index % len(generated.DEFECTS)],
    ):
      seed = zlib.crc32(f"{category}/{index}/{defect}".encode())
      rng = np.random.default_rng(seed)
      yield generated.generate(category, defect, rng, size, defect_scale)


def _see(
  detector: AnomalyDetector, parts: Sequence[np.ndarray]
) -> list[Detection]:
  """Scores and maps of parts at the model's size, each by itself."""
  size = (detector.image_size, detector.image_size)
  images = [DecodedImage(part, size) for part in parts]
  step = detector.max_batch_size
  return [
    detection
    for start in range(0, len(images), step)
    for detection in detector.detect(images[start : start + step])
  ]


def look(
  detector: AnomalyDetector, pixels: np.ndarray, grids: Sequence[str]
) -> dict[tuple[str, str], tuple[float, np.ndarray]]:
  """An image's scores and maps, of side 500, by grid and rule.

  Args:
    detector: scores each part.
    pixels: uint8 (h, w, 3).
    grids: as `tiles.normalize` gives them.
  """
  size = (_MAP_SIDE, _MAP_SIDE)
  found = {}
  for grid in grids:
    decoded = detector.decode(pixels, tiles=grid)
    whole, *seen = _see(detector, [decoded.pixels, *decoded.parts])
    whole_map = resize_map(whole.anomaly_map, size)
    found["none", "whole alone"] = whole.image_score, whole_map
    maps = np.stack([part.anomaly_map for part in seen])
    blended = tiles.blend(maps, decoded.grid, size)
    highest = max(part.image_score for part in seen)
    for name, rule in RULES.items():
      found[grid, name] = (
        rule(whole.image_score, highest),
        rule(whole_map, blended),
      )
  return found


def compare(
  detector: AnomalyDetector,
  categories: Sequence[str],
  number: int,
  size: int,
  defect_scale: float,
  grids: Sequence[str],
) -> dict[tuple[str, str], np.ndarray]:
  """Means over categories of image AUROC, pixel AUROC and pixel AP.

  Args:
    detector: scores the images.
    categories: of generated images.
    number: of normal and of anomalous images of each.
    size: of the images' sides, in pixels.
    defect_scale: see `generated.generate_pair`.
    grids: of tiles.

  Returns:
    Shares (3,) by grid and rule.
  """
  rows = {}
  progress = Progress(2 * number * len(categories), "images")
  for place, category in enumerate(categories):
    labels, scores, pixels = [], {}, {}
    images = _images(category, number, size, defect_scale)
    for done, (image, mask) in enumerate(images, start=1):
      labels.append(mask.any())
      # A pixel of the map is anomalous if one of the image's in it is.
      small = Image.fromarray(mask.astype(np.uint8) * 255)
      small = small.resize((_MAP_SIDE, _MAP_SIDE), Image.Resampling.BOX)
      for way, (score, anomaly_map) in look(detector, image, grids).items():
        scores.setdefault(way, []).append(score)
        state = pixels.setdefault(way, metrics.PixelMetrics())
        state.add(anomaly_map, np.asarray(small) > 0)
      progress.update(2 * number * place + done, "looking")
    for way in scores:
      values = metrics.image_metrics(np.array(scores[way]), np.array(labels))
      values |= pixels[way].compute()
      rows.setdefault(way, []).append([values[name] for name in _METRICS])
  return {way: np.mean(values, axis=0) for way, values in rows.items()}


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m tools.compare_tiles",
    description=__doc__.partition("\n")[0],
    allow_abbrev=False,
  )
  parser.add_argument(
    "--number", type=int, default=10, help="of each kind in a category"
  )
  parser.add_argument("--size", type=int, default=2000, help="in pixels")
  parser.add_argument("--grids", default=_GRIDS)
  parser.add_argument(
    "--defect_scale",
    type=float,
    default=0.125,
    help="of a defect's lengths, relative to the demo's",
  )
  options = parser.parse_args(arguments)
  show_messages()
  found = compare(
    load_detector(),
    generated.EVALUATION_CATEGORIES,
    options.number,
    options.size,
    options.defect_scale,
    [tiles.normalize(grid) for grid in options.grids.split(",")],
  )
  table = [("tiles", "rule", "image AUROC", "pixel AUROC", "pixel AP")]
  for (grid, rule), values in found.items():
    table.append((grid, rule, *(f"{100 * value:.1f}" for value in values)))
  print("\n".join(align(table, num_text_columns=2)))


if __name__ == "__main__":
  main()
