"""The demo's model on a large image with a defect of a few pixels."""

import numpy as np
import pytest

from cops_jax.datasets import generated
from cops_jax.demo import load_detector


@pytest.fixture(scope="module")
def detector():
  detector = load_detector()
  detector.thresholds = ()
  return detector


def test_a_small_defect_is_found_only_with_tiles(detector):
  """The scores are compared with those of the same image without the defect."""
  rng = np.random.default_rng(0)
  *images, mask = generated.generate_pair("wood", "hole", rng, 896, 1 / 6)
  assert mask.mean() < 5e-4
  rows, columns = np.nonzero(mask)
  around = np.zeros_like(mask)
  around[
    max(rows.min() - 30, 0) : rows.max() + 30,
    max(columns.min() - 30, 0) : columns.max() + 30,
  ] = True
  for tiles, is_found in (("", False), ("4x4", True)):
    found, normal = detector(images, tiles)
    difference = found.image_score - normal.image_score
    highest = found.anomaly_map[around].max()
    elsewhere = found.anomaly_map[~around].max()
    if is_found:
      assert difference > 0.2 and highest > 3 * elsewhere
    else:
      assert abs(difference) < 0.05 and highest < 0.5 * elsewhere
