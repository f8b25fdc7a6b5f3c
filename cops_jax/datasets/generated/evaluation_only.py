"""Surfaces and outlines that only the evaluation categories use.

A surface is a function `(rng, size) -> image`; `objects` describes outlines.
"""

import numpy as np

from cops_jax.datasets.generated.drawing import (
  coordinates,
  fractal,
  grain,
  jitter,
  mix,
  noise,
  per_cell,
  step,
)
from cops_jax.datasets.generated.objects import ellipse, radial


def wood(rng, size):
  palette = jitter(rng, (0.76, 0.56, 0.35), (0.48, 0.29, 0.15))
  u, v = coordinates(rng, size, 10, rng.normal(0, 0.08))
  # Growth rings are stretched along the grain and bent by a smooth drift.
  drift = noise(rng, size, 5, 2) + 0.25 * noise(rng, size, 9, 3)
  phase = v * rng.uniform(0.7, 1.2) + 0.9 * drift + 0.02 * u
  ring = (phase % 1) ** 2
  fibre = noise(rng, size, size, 8)
  image = mix(palette[0], palette[1], np.clip(0.15 + 0.6 * ring, 0, 1))
  return image * (1 + 0.06 * fibre)[..., None]


def brick(rng, size):
  palette = jitter(rng, (0.62, 0.28, 0.20), (0.75, 0.71, 0.65))
  u, v = coordinates(rng, size, rng.uniform(15, 19), rng.normal(0, 0.03), 0.01)
  u = u / 2.1 + 0.5 * (np.floor(v) % 2)
  border = np.minimum(
    (0.5 - np.abs(u % 1 - 0.5)) * 2.1, 0.5 - np.abs(v % 1 - 0.5)
  )
  mortar = step(0.075 + 0.02 * noise(rng, size, 30) - border, 0.06)
  tone = 0.35 * (per_cell(rng, u, v) - 0.5) * (1 - mortar)
  image = mix(palette[0], palette[1], mortar)
  return image * (1 + tone + 0.07 * fractal(rng, size, 20, 2))[..., None]


def knit(rng, size):
  palette = jitter(rng, (0.25, 0.38, 0.55), (0.10, 0.15, 0.26))
  period = rng.uniform(11, 14)
  u, v = coordinates(rng, size, period, rng.normal(0, 0.1), 0.05)
  half = u % 1 - 0.5
  # Each stitch is a V of two strands that meet in the middle of the column.
  strand = (1.4 * v - 1.1 * np.abs(half)) % 1 - 0.5
  bulge = 1 - (strand / 0.5) ** 2 - (np.abs(np.abs(half) - 0.25) / 0.3) ** 2
  yarn = np.clip(bulge, 0, 1) ** 0.7
  tone = 0.15 * (per_cell(rng, u, 1.4 * v - 1.1 * np.abs(half)) - 0.5)
  image = mix(palette[1], palette[0] * 1.15, yarn)
  return image * (1 + tone + grain(rng, size, 0.06))[..., None]


def hex_nut(rng):
  hole = rng.uniform(0.42, 0.5)
  return [
    (radial(np.ones(6)), -0.1),
    (ellipse(a=0.86), 0.12),
    (ellipse(a=hole + 0.12), -0.3),
    (ellipse(a=hole), None),
  ]


def gear(rng):
  teeth = int(rng.integers(11, 15))
  return [
    (radial(np.tile([1, 1, 1, 0.8, 0.8, 0.8], teeth)), 0),
    (ellipse(a=0.62), -0.2),
    (ellipse(a=0.34), 0.1),
    (ellipse(a=0.2), None),
  ]


def biscuit(rng):
  t = np.linspace(0, 2 * np.pi, 240, endpoint=False)
  # A superellipse with scallops around its edge.
  radii = (np.abs(np.cos(t)) ** 5 + np.abs(np.sin(t)) ** 5) ** -0.2
  outline = radial(0.92 * radii * (1 + 0.035 * np.cos(28 * t)))
  layers = [(outline, -0.12), (outline * 0.86, 0.0)]
  for y in (-0.5, 0, 0.5):
    for x in (-0.5, 0, 0.5):
      dx, dy = rng.normal(0, 0.02, 2)
      layers.append((ellipse(x + dx, y + dy, 0.075), -0.45))
  return layers
