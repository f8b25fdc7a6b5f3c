"""Photographs of the categories with defects and pixel masks."""

import numpy as np

from cops_jax.datasets.generated.categories import CATEGORIES
from cops_jax.datasets.generated.defects import DEFECTS
from cops_jax.datasets.generated.drawing import (
  REFERENCE_SIZE,
  noise,
  pixel_grid,
  step,
)


def _capture(rng, size):
  """Draws lighting gain (size, size, 3) and sensor noise of one photograph."""
  y, x = (axis / (REFERENCE_SIZE / 2) for axis in pixel_grid(size))
  tilt = rng.normal(0, 0.06, 2).astype(np.float32)
  vignette = np.float32(rng.uniform(0, 0.12))
  gain = 1 + tilt[0] * y + tilt[1] * x - vignette * (x * x + y * y)
  gain = gain + np.float32(rng.uniform(0, 0.04)) * noise(rng, size, 3)
  if rng.random() < 0.25:  # A soft cast shadow that is no defect.
    angle = rng.uniform(0, 2 * np.pi)
    side = np.cos(angle) * x + np.sin(angle) * y - rng.uniform(-0.8, 0.8)
    gain = gain * (1 - rng.uniform(0.05, 0.2) * step(side, 0.6))
  white = rng.normal(1, 0.02, 3) * rng.normal(1, 0.06)
  sensor = rng.standard_normal((size, size, 3), np.float32)
  return gain[..., None] * white, sensor * np.float32(rng.uniform(0.004, 0.018))


def generate_pair(
  category: str, defect: str | None, rng: np.random.Generator, size: int = 112
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Draws one photograph with and without a defect.

  Lighting and sensor noise are the same in both, so they differ only in the
  mask.

  Args:
    category: Key of `CATEGORIES`.
    defect: Key of `DEFECTS`, or None.
    rng: Source of all randomness.
    size: Side of the square images in pixels.

  Returns:
    Image with the defect and image without it, uint8 (size, size, 3), and the
    mask of the defect, bool (size, size), all False without a defect.
  """
  base, foreground = CATEGORIES[category].render(rng, size)
  gain, sensor = _capture(rng, size)

  def photograph(scene):
    return (np.clip(scene * gain + sensor, 0, 1) * 255 + 0.5).astype(np.uint8)

  normal = photograph(base)
  if defect is None:
    return normal.copy(), normal, np.zeros((size, size), bool)
  changed, mask = DEFECTS[defect](rng, base, foreground)
  return photograph(changed), normal, mask


def generate(
  category: str, defect: str | None, rng: np.random.Generator, size: int = 112
) -> tuple[np.ndarray, np.ndarray]:
  """Draws one image, uint8 (size, size, 3), and its mask, bool (size, size).

  The same as the defective image and the mask of `generate_pair`.
  """
  image, _, mask = generate_pair(category, defect, rng, size)
  return image, mask
