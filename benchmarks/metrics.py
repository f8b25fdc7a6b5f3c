"""Speed, memory and error of the pixel metrics, against scikit-learn.

  python -m benchmarks.metrics

Maps of 518 x 518 pixels are smoothed patch probabilities as CoPS gives them;
every second image has up to three defects. Time and errors are taken from
scikit-learn in the same run; memory is the peak of fresh processes that handle
maps one by one. The errors at 1e8 pixels take most of the time, and some 10 GB.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.timing import Row, measure, row
from cops_jax import metrics, scoring
from cops_jax.runtime.processes import peak_memory_bytes

_IMAGE_SIZE, _GRID_SIZE = 518, 37
_NUM_MAPS = 100
_NUM_MAPS_OF_ERRORS = -(-(10**8) // _IMAGE_SIZE**2)
# Mean and spread of a patch's log odds; whether some maps are tied or constant.
_KINDS = {
  "usual": (-2.0, 1.0, False),
  "usual, a tenth rounded to 1/255, a tenth constant": (-2.0, 1.0, True),
  "saturated": (-6.0, 5.0, False),
}


def generate_maps(
  number: int,
  center: float = -2.0,
  spread: float = 1.0,
  has_ties: bool = False,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Anomaly maps and masks, the same in every call."""
  rng = np.random.default_rng(0)
  matrix = scoring.upsampling_matrix(_IMAGE_SIZE, _GRID_SIZE, "bilinear")
  patch_size = _IMAGE_SIZE // _GRID_SIZE
  for index in range(number):
    mask = np.zeros((_IMAGE_SIZE, _IMAGE_SIZE), bool)
    for _ in range(index % 2 * rng.integers(1, 4)):
      top, left = rng.integers(0, 450, 2)
      height, width = rng.integers(5, 100, 2)
      mask[top : top + height, left : left + width] = True
    patches = mask.reshape(_GRID_SIZE, patch_size, _GRID_SIZE, patch_size)
    log_odds = rng.normal(size=(_GRID_SIZE, _GRID_SIZE))
    log_odds += 2.5 * patches.mean(axis=(1, 3))
    grid = 1 / (1 + np.exp(-(center + spread * log_odds)))
    anomaly_map = (matrix @ grid @ matrix.T).astype(np.float32)
    if has_ties and index % 10 == 3:
      anomaly_map = np.rint(anomaly_map * 255) / np.float32(255)
    if has_ties and index % 10 == 4:
      anomaly_map = np.full_like(anomaly_map, anomaly_map.mean())
    yield anomaly_map, mask


def gather(maps) -> metrics.PixelMetrics:
  state = metrics.PixelMetrics()
  for anomaly_map, mask in maps:
    state.add(anomaly_map, mask)
  return state


def peak_megabytes(number: int, is_measured: bool) -> float:
  """Of a fresh process that generates maps and has metrics of them or not."""
  if is_measured:
    gather(generate_maps(number)).count().compute()
  else:
    for _ in generate_maps(number):
      pass
  return peak_memory_bytes() / 2**20


def in_fresh_process(function, *arguments):
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
    return pool.submit(function, *arguments).result()


def memory_rows(is_quick: bool) -> Iterator[Row]:
  """Peaks of fresh processes, in MB above that of the same maps alone."""
  few = 10 if is_quick else _NUM_MAPS
  base = in_fresh_process(peak_megabytes, few, False)
  first = None
  for number in (few, 10 * few):
    peak = in_fresh_process(peak_megabytes, number, True)
    first = first or peak
    note = f"{peak - base:.1f} MB; the peak is {peak / first:.3f} of the first"
    yield Row(f"memory of pixel metrics, {number} maps", note=note)


def rows(is_quick: bool) -> Iterator[Row]:
  """Measures the time; a row comes when it is ready."""
  from sklearn.metrics import average_precision_score, roc_auc_score

  number = 10 if is_quick else _NUM_MAPS
  maps = list(generate_maps(number))
  seconds = measure(lambda: gather(maps).count().compute(), 3)
  scores, labels = (
    np.concatenate(arrays, axis=None) for arrays in zip(*maps, strict=True)
  )
  start = time.perf_counter()
  roc_auc_score(labels, scores)
  average_precision_score(labels, scores)
  theirs = time.perf_counter() - start
  yield row(
    f"all pixel metrics, {number} maps of {_IMAGE_SIZE} x {_IMAGE_SIZE}",
    seconds,
    f"scikit-learn's AUROC and AP {theirs:.2f} s,"
    f" {theirs / np.median(seconds):.1f} times",
  )


def region_weights(mask: np.ndarray) -> np.ndarray:
  """1 for normal pixels, 1 / area of its region for anomalous ones."""
  from scipy import ndimage

  regions, _ = ndimage.label(mask, structure=np.ones((3, 3)))
  areas = np.bincount(regions.reshape(-1))
  areas[0] = 1
  return (1 / areas)[regions]


def sklearn_metrics(
  scores: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> dict[str, float]:
  """AUPRO is the partial area of an ROC curve of weighted pixels."""
  from sklearn import metrics as sklearn

  values = {
    "pixel_auroc": sklearn.roc_auc_score(labels, scores),
    "pixel_ap": sklearn.average_precision_score(labels, scores),
  }
  precision, recall, _ = sklearn.precision_recall_curve(labels, scores)
  found = recall > 0
  precision, recall = precision[found], recall[found]
  values["pixel_f1_max"] = np.max(2 / (1 / precision + 1 / recall))
  del precision, recall, found  # Gigabytes.
  rate, overlap, _ = sklearn.roc_curve(labels, scores, sample_weight=weights)
  end = np.searchsorted(rate, 0.3)
  rate, overlap = (
    np.append(values[:end], np.interp(0.3, rate, values))
    for values in (rate, overlap)
  )
  values["pixel_aupro"] = sklearn.auc(rate, overlap) / 0.3
  return values


def error_rows(kind: str, is_quick: bool) -> list[Row]:
  """Each metric, and how far it is from scikit-learn's."""
  number = 4 if is_quick else _NUM_MAPS_OF_ERRORS
  shape = (number, _IMAGE_SIZE, _IMAGE_SIZE)
  scores, labels = np.empty(shape, np.float32), np.empty(shape, bool)
  weights = np.empty(shape, np.float32)
  state = metrics.PixelMetrics()
  maps = generate_maps(number, *_KINDS[kind])
  for index, (anomaly_map, mask) in enumerate(maps):
    state.add(anomaly_map, mask)
    scores[index], labels[index] = anomaly_map, mask
    weights[index] = region_weights(mask)
  expected = sklearn_metrics(
    *(array.reshape(-1) for array in (scores, labels, weights))
  )
  found = state.count().compute()
  return [
    Row(
      f"{name} of {scores.size:.2e} pixels, {kind}",
      note=f"{found[name]:.6f}, {found[name] - want:+.1e} from scikit-learn's",
    )
    for name, want in expected.items()
  ]


def all_rows(is_quick: bool) -> Iterator[Row]:
  """Memory, time and errors."""
  yield from memory_rows(is_quick)
  yield from rows(is_quick)
  for kind in _KINDS:
    yield from in_fresh_process(error_rows, kind, is_quick)


if __name__ == "__main__":
  from benchmarks.table import run

  run({"metrics": all_rows})
