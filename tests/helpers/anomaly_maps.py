"""Anomaly maps with their masks, and states of metrics that gathered them."""

import numpy as np

from cops_jax import metrics


def gather(maps, masks, mode="binned"):
  """Returns counts by score."""
  state = metrics.PIXEL_METRICS_MODES[mode]()
  for anomaly_map, mask in zip(maps, masks, strict=True):
    state.add(anomaly_map, mask)
  return state.count()


def squares(number, side, seed=0):
  """Masks with some squares; every third has none."""
  rng = np.random.default_rng(seed)
  masks = np.zeros((number, side, side), bool)
  for index in range(number):
    for row, column in rng.integers(0, side * 3 // 4, (index % 3, 2)):
      size = rng.integers(1, side // 4)
      masks[index, row : row + size, column : column + size] = True
  return masks


def random_maps(number=8, side=128, center=-3.0, scale=1.0, shift=2.5):
  """Anomaly maps of chosen mean and spread of the log odds, and masks."""
  masks = squares(number, side)
  noise = np.random.default_rng(1).normal(size=masks.shape)
  log_odds = center + scale * (noise + shift * masks)
  return (1 / (1 + np.exp(-log_odds))).astype(np.float32), masks
