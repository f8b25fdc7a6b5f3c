"""Speed of the pixel metrics, compared with scikit-learn.

Maps of 518 x 518 pixels are upsampled patch probabilities, like those of CoPS.
Every second image has up to three defects.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from benchmarks.common import Row, measure
from cops_jax import metrics, scoring

_IMAGE_SIZE, _GRID_SIZE = 518, 37


def generate_maps(number: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields anomaly maps and masks; every call yields the same."""
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
    log_odds = rng.normal(size=(_GRID_SIZE, _GRID_SIZE)) - 2
    log_odds += 2.5 * patches.mean(axis=(1, 3))
    grid = 1 / (1 + np.exp(-log_odds))
    yield (matrix @ grid @ matrix.T).astype(np.float32), mask


def rows(is_quick: bool) -> Iterator[Row]:
  """Yields rows as they are measured."""
  from sklearn.metrics import average_precision_score, roc_auc_score

  maps = list(generate_maps(10 if is_quick else 100))

  def compute():
    state = metrics.PixelMetrics()
    for anomaly_map, mask in maps:
      state.add(anomaly_map, mask)
    return state.count().compute()

  seconds = measure(compute, 3)
  scores, labels = (
    np.concatenate(arrays, axis=None) for arrays in zip(*maps, strict=True)
  )
  start = time.perf_counter()
  roc_auc_score(labels, scores)
  average_precision_score(labels, scores)
  theirs = time.perf_counter() - start
  yield Row(
    f"all pixel metrics, {len(maps)} maps of {_IMAGE_SIZE} x {_IMAGE_SIZE}",
    seconds,
    f"scikit-learn's AUROC and AP take {theirs:.2f} s,"
    f" {theirs / np.median(seconds):.1f} times as long",
  )
