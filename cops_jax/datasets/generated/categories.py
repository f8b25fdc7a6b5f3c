"""The products of the training and evaluation categories."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from scipy import ndimage

from cops_jax.datasets.generated import evaluation_only, patterns
from cops_jax.datasets.generated.drawing import REFERENCE_SIZE, jitter
from cops_jax.datasets.generated.objects import (
  circuit_chip,
  draw_object,
  plain_material,
  ring,
  two_tone_capsule,
)


@dataclasses.dataclass(frozen=True)
class Category:
  """A kind of product.

  Attributes:
    name: identifier; prompts use it with spaces for underscores.
    kind: "surface" or "object".
    draw: function that draws the scene: `(rng, size) -> image` for a surface,
      `(rng, size) -> (image, foreground)` for an object.
  """

  name: str
  kind: str
  draw: Callable

  def render(
    self, rng: np.random.Generator, size: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Draws the scene without lighting, noise or defect.

    Returns:
      The image, float32 (size, size, 3) in [0, 1], and the foreground, bool
      (size, size), which is True everywhere for a surface.
    """
    if self.kind == "surface":
      image, foreground = self.draw(rng, size), np.ones((size, size), bool)
    else:
      image, foreground = self.draw(rng, size)
    # A slight optical blur.
    sigma = rng.uniform(0.25, 0.7) * size / REFERENCE_SIZE
    image = ndimage.gaussian_filter(
      image.astype(np.float32), (sigma, sigma, 0), truncate=2.5
    )
    return np.clip(image, 0, 1), foreground


def _fixed_surface(name, pattern, colours, period, tilt):
  """Returns a surface with fixed colours and limited periods and tilts."""

  def draw(rng, size):
    return pattern(
      rng,
      size,
      jitter(rng, *colours),
      rng.uniform(*period),
      rng.uniform(-tilt, tilt),
    )

  return Category(name, "surface", draw)


def _fixed_object(name, shape, colours, extent, tilt=np.pi, texture=0.02):
  """Returns an object with fixed colours of body and background."""

  def draw(rng, size):
    body, ground = jitter(rng, *colours)
    return draw_object(
      rng,
      size,
      shape(rng),
      plain_material(rng, size, body, texture),
      plain_material(rng, size, ground),
      extent,
      rng.uniform(-tilt, tilt),
    )

  return Category(name, "object", draw)


_TRAINING = (
  _fixed_surface(
    "floor_tile",
    patterns.grid_panel,
    ((0.72, 0.74, 0.72), (0.40, 0.39, 0.37)),
    (12, 16),
    0.06,
  ),
  _fixed_surface(
    "leather",
    patterns.pebbled_vinyl,
    ((0.45, 0.27, 0.16), (0.20, 0.10, 0.06)),
    (9, 13),
    np.pi,
  ),
  _fixed_surface(
    "marble",
    patterns.veined_stone,
    ((0.87, 0.86, 0.84), (0.45, 0.46, 0.50)),
    (10, 18),
    np.pi,
  ),
  _fixed_object(
    "washer", ring, ((0.62, 0.63, 0.66), (0.16, 0.22, 0.30)), (32, 42)
  ),
  _fixed_object(
    "capsule",
    functools.partial(two_tone_capsule, b=0.42, tone=-0.6),
    ((0.90, 0.70, 0.25), (0.86, 0.87, 0.88)),
    (38, 46),
  ),
  _fixed_object(
    "chip",
    functools.partial(circuit_chip, pins=6),
    ((0.17, 0.17, 0.19), (0.24, 0.48, 0.33)),
    (36, 44),
    0.25,
  ),
)

_EVALUATION = (
  Category("wood", "surface", evaluation_only.wood),
  Category("brick", "surface", evaluation_only.brick),
  Category("knit", "surface", evaluation_only.knit),
  _fixed_object(
    "hex_nut",
    evaluation_only.hex_nut,
    ((0.66, 0.60, 0.45), (0.20, 0.20, 0.22)),
    (36, 44),
  ),
  _fixed_object(
    "gear",
    evaluation_only.gear,
    ((0.50, 0.55, 0.62), (0.83, 0.81, 0.77)),
    (38, 46),
  ),
  _fixed_object(
    "biscuit",
    evaluation_only.biscuit,
    ((0.80, 0.60, 0.34), (0.30, 0.40, 0.50)),
    (36, 42),
    0.5,
    0.05,
  ),
)

TRAINING_CATEGORIES = tuple(c.name for c in _TRAINING)
EVALUATION_CATEGORIES = tuple(c.name for c in _EVALUATION)
CATEGORIES = {c.name: c for c in _TRAINING + _EVALUATION}
