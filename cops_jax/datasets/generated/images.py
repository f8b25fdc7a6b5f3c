"""Simulated photographs of the categories, with defects and masks."""

from typing import Any

import numpy as np

from cops_jax.datasets.generated.categories import CATEGORIES, Category
from cops_jax.datasets.generated.defects import DEFECTS
from cops_jax.datasets.generated.drawing import (
  REFERENCE_SIZE,
  noise,
  pick_centre,
  pixel_grid,
  step,
)


def _capture(rng, size):
  """Draws the lighting gain and sensor noise of a photograph."""
  y, x = (axis / (REFERENCE_SIZE / 2) for axis in pixel_grid(size))
  tilt = rng.normal(0, 0.06, 2).astype(np.float32)
  vignette = np.float32(rng.uniform(0, 0.12))
  gain = 1 + tilt[0] * y + tilt[1] * x - vignette * (x * x + y * y)
  gain = gain + np.float32(rng.uniform(0, 0.04)) * noise(rng, size, 3)
  if rng.random() < 0.25:  # A soft shadow, which is not a defect.
    angle = rng.uniform(0, 2 * np.pi)
    side = np.cos(angle) * x + np.sin(angle) * y - rng.uniform(-0.8, 0.8)
    gain = gain * (1 - rng.uniform(0.05, 0.2) * step(side, 0.6))
  white = rng.normal(1, 0.02, 3) * rng.normal(1, 0.06)
  sensor = rng.standard_normal((size, size, 3), np.float32)
  return gain[..., None] * white, sensor * np.float32(rng.uniform(0.004, 0.018))


def _square(rng, foreground, side):
  """Returns the rows and columns of a square around part of the foreground."""
  size = foreground.shape[0]
  if side == size:
    return np.s_[:, :]
  centre = pick_centre(rng, foreground)
  top, left = np.clip(centre - side / 2, 0, size - side).astype(int)
  return np.s_[top : top + side, left : left + side]


def generate_pair(
  category: str | Category,
  defect: str | None,
  rng: np.random.Generator,
  size: int = 112,
  defect_scale: float = 1.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Draws a photograph with and without a defect.

  Both have the same lighting and sensor noise, so they differ only in the mask.

  Args:
    category: a category or its key in `CATEGORIES`.
    defect: key of the defect in `DEFECTS`, or None.
    rng: source of all randomness.
    size: side of the square images in pixels.
    defect_scale: scale of the defect's lengths, at most 1; the defect is drawn
      in a square of this share of the image's side.

  Returns:
    The image with the defect and the image without it, uint8 (size, size, 3),
    and the mask of the defect, bool (size, size).
  """
  if isinstance(category, str):
    category = CATEGORIES[category]
  base, foreground = category.render(rng, size)
  gain, sensor = _capture(rng, size)

  def photograph(scene):
    return (np.clip(scene * gain + sensor, 0, 1) * 255 + 0.5).astype(np.uint8)

  normal = photograph(base)
  if defect is None:
    return normal.copy(), normal, np.zeros((size, size), bool)
  changed, mask = base.copy(), np.zeros((size, size), bool)
  place = _square(rng, foreground, round(defect_scale * size))
  changed[place], mask[place] = DEFECTS[defect](
    rng, base[place], foreground[place]
  )
  return photograph(changed), normal, mask


def generate(*args: Any, **kwargs: Any) -> tuple[np.ndarray, np.ndarray]:
  """Returns the image with the defect and the mask of `generate_pair`."""
  image, _, mask = generate_pair(*args, **kwargs)
  return image, mask
