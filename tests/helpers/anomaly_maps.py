"""Random anomaly maps with masks, and pixel counts of them."""

import numpy as np

from cops_jax import metrics


def gather(maps, masks, mode="binned"):
  """Returns the pixel counts by score of anomaly maps and masks."""
  state = metrics.PIXEL_METRICS_MODES[mode]()
  for anomaly_map, mask in zip(maps, masks, strict=True):
    state.add(anomaly_map, mask)
  return state.count()


def squares(number, side, seed=0):
  """Returns masks with up to two squares; every third mask is empty."""
  rng = np.random.default_rng(seed)
  masks = np.zeros((number, side, side), bool)
  for index in range(number):
    for row, column in rng.integers(0, side * 3 // 4, (index % 3, 2)):
      size = rng.integers(1, side // 4)
      masks[index, row : row + size, column : column + size] = True
  return masks


def random_maps(number=8, side=128, center=-3.0, scale=1.0, shift=2.5):
  """Returns masks and anomaly maps with normally distributed log odds."""
  masks = squares(number, side)
  noise = np.random.default_rng(1).normal(size=masks.shape)
  log_odds = center + scale * (noise + shift * masks)
  return (1 / (1 + np.exp(-log_odds))).astype(np.float32), masks
