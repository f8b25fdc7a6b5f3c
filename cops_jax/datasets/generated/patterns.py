"""Surface patterns that training and pretraining categories share.

A pattern is a function `(rng, size, palette, period, angle) -> image`. Palettes
have shape (2, 3), periods are in reference pixels, and angles in radians.
"""

import numpy as np

from cops_jax.datasets.generated.drawing import (
  REFERENCE_SIZE,
  cellular,
  coordinates,
  fractal,
  grain,
  mix,
  noise,
  per_cell,
  pixel_grid,
  random_palette,
  step,
)

PATTERNS = {}


def _pattern(function):
  """Registers a function that returns mixing weights and tones as a pattern."""

  def pattern(rng, size, palette, period, angle):
    weight, tone = function(rng, size, period, angle)
    image = mix(palette[0], palette[1], np.clip(weight, 0, 1))
    return image * (1 + np.asarray(tone, np.float32))[..., None]

  PATTERNS[function.__name__] = pattern
  return pattern


@_pattern
def striped_sheet(rng, size, period, angle):
  u, _ = coordinates(rng, size, period, angle, rng.choice([0, 0.06]))
  duty = rng.uniform(-0.6, 0.6)
  weight = step(np.sin(2 * np.pi * u) - duty, rng.uniform(0.3, 2))
  return weight, 0.05 * (per_cell(rng, u, u * 0) - 0.5)


@_pattern
def checkerboard(rng, size, period, angle):
  u, v = coordinates(rng, size, period * 2, angle)
  wave = np.sin(2 * np.pi * u) * np.sin(2 * np.pi * v)
  tone = 0.2 * (per_cell(rng, u * 2, v * 2) - 0.5)
  return step(wave, 0.2), tone


@_pattern
def grid_panel(rng, size, period, angle):
  u, v = coordinates(rng, size, period * 2, angle, 0.005)
  border = 0.5 - np.maximum(np.abs(u % 1 - 0.5), np.abs(v % 1 - 0.5))
  tone = rng.uniform(0.05, 0.25) * (per_cell(rng, u, v) - 0.5)
  tone = tone + 0.04 * fractal(rng, size, 10)
  return step(rng.uniform(0.03, 0.09) - border, 0.05), tone


@_pattern
def dotted_sheet(rng, size, period, angle):
  u, v = coordinates(rng, size, period, angle, 0.03)
  if rng.random() < 0.5:
    u = u + 0.5 * (np.floor(v) % 2)
  radius = rng.uniform(0.2, 0.38) + 0.06 * (per_cell(rng, u, v) - 0.5)
  return step(radius - np.hypot(u % 1 - 0.5, v % 1 - 0.5), 0.15), grain(
    rng, size
  )


@_pattern
def hexagon_tiles(rng, size, period, angle):
  u, v = coordinates(rng, size, period * 1.5, angle)
  v = v / np.float32(np.sqrt(3))
  # Two interleaved rectangular lattices form the hexagonal one.
  first = np.stack([u % 1 - 0.5, (v % 1 - 0.5) * np.sqrt(3)])
  second = np.stack([(u + 0.5) % 1 - 0.5, ((v + 0.5) % 1 - 0.5) * np.sqrt(3)])
  use_first = (first**2).sum(0) < (second**2).sum(0)
  du, dv = np.abs(np.where(use_first, first, second))
  border = 0.5 - np.maximum(du, du * 0.5 + dv * np.sqrt(0.75))
  row = np.where(use_first, np.floor(v) * 2, np.floor(v + 0.5) * 2 + 1)
  column = np.where(use_first, np.floor(u), np.floor(u + 0.5))
  tone = rng.uniform(0.05, 0.25) * (per_cell(rng, column, row) - 0.5)
  return step(rng.uniform(0.03, 0.08) - border, 0.06), tone


@_pattern
def cloudy_plastic(rng, size, period, angle):
  del angle
  cells = REFERENCE_SIZE / period
  return 0.5 + 0.3 * fractal(rng, size, cells), grain(rng, size)


@_pattern
def veined_stone(rng, size, period, angle):
  u, _ = coordinates(rng, size, period * 3, angle)
  phase = u + rng.uniform(0.2, 0.5) * fractal(rng, size, 4, 4)
  weight = (1 - np.abs(np.sin(np.pi * phase))) ** rng.uniform(1.5, 4)
  return weight, 0.04 * fractal(rng, size, 8)


@_pattern
def wavy_sheet(rng, size, period, angle):
  u, v = coordinates(rng, size, period, angle)
  v = v + rng.uniform(0.2, 0.6) * np.sin(u * rng.uniform(0.6, 2))
  return step(np.sin(2 * np.pi * v), rng.uniform(0.5, 2.5)), grain(rng, size)


@_pattern
def concrete(rng, size, period, angle):
  del angle
  pores = noise(rng, size, size / rng.uniform(1.2, 2.5))
  weight = 0.25 + 0.1 * fractal(rng, size, REFERENCE_SIZE / period / 2)
  return weight + 0.5 * (pores > rng.uniform(1.2, 2)), grain(rng, size, 0.06)


@_pattern
def terrazzo(rng, size, period, angle):
  u, v = coordinates(rng, size, period, angle, 0.08)
  nearest, second, value = cellular(rng, u, v)
  weight = step(second - nearest - 0.15 - 0.25 * value, 0.1)
  return weight * (0.3 + value), grain(rng, size)


@_pattern
def scales(rng, size, period, angle):
  u, v = coordinates(rng, size, period, angle)
  weight = np.zeros_like(u)
  for row in (1, 0, -1):  # Lower rows overlap the rows above them.
    y = np.floor(v * 2) - row
    radius = np.hypot((u + 0.5 * (y % 2)) % 1 - 0.5, v - y / 2)
    inside = (radius < 0.6) & (v * 2 >= y)
    weight = np.where(inside, step(radius - 0.42, 0.4), weight)
  return weight, grain(rng, size)


@_pattern
def ringed_plate(rng, size, period, angle):
  del angle
  y, x = pixel_grid(size)
  centre = rng.uniform(-40, 40, 2)
  radius = np.hypot(y - centre[0], x - centre[1]) / period
  return step(np.sin(2 * np.pi * radius), rng.uniform(0.5, 2.5)), grain(
    rng, size
  )


@_pattern
def crosshatch(rng, size, period, angle):
  u, v = coordinates(rng, size, period, angle, 0.03)
  v = v + u * rng.uniform(0, 1)
  lines = np.minimum(np.abs(u % 1 - 0.5), np.abs(v % 1 - 0.5))
  return step(rng.uniform(0.06, 0.14) - lines, 0.1), grain(rng, size)


@_pattern
def brushed_metal(rng, size, period, angle):
  streaks = 0.6 * noise(rng, size, size, 3) + 0.4 * noise(rng, size, size, 9)
  streaks = streaks if np.sin(angle) > 0 else streaks.T
  broad = noise(rng, size, REFERENCE_SIZE / period / 3 + 2)
  return 0.4 + 0.2 * streaks + 0.08 * broad, 0


@_pattern
def painted_panel(rng, size, period, angle):
  u, _ = coordinates(rng, size, period * 8, angle)
  return 0.5 + 0.5 * np.sin(u), grain(rng, size, 0.02)


@_pattern
def plaid(rng, size, period, angle):
  u, v = coordinates(rng, size, period * 3, angle)
  duty = rng.uniform(-0.7, 0.7, 2)
  bands = [
    step(np.sin(2 * np.pi * w) - duty[0], 0.2)
    + 0.6 * step(np.sin(4 * np.pi * w + 1) - duty[1], 0.2)
    for w in (u, v)
  ]
  return (bands[0] + bands[1]) / 3, grain(rng, size)


@_pattern
def mosaic(rng, size, period, angle):
  u, v = coordinates(rng, size, period * 1.4, angle)
  nearest, second, value = cellular(rng, u, v)
  return value, -0.5 * step(0.07 - (second - nearest), 0.1)


@_pattern
def pebbled_vinyl(rng, size, period, angle):
  u, v = coordinates(rng, size, period * 0.8, angle, 0.12)
  nearest, second, value = cellular(rng, u, v)
  crease = step(0.12 - (second - nearest), 0.25)
  return crease * 0.8, 0.08 * (value - 0.5) + 0.04 * noise(rng, size, 6)


@_pattern
def hammered_metal(rng, size, period, angle):
  u, v = coordinates(rng, size, period, angle)
  nearest, _, _ = cellular(rng, u, v)
  relief = np.gradient(nearest * period, axis=1) * REFERENCE_SIZE / size
  return 0.5 + 0.4 * relief, grain(rng, size)


@_pattern
def foam(rng, size, period, angle):
  u, v = coordinates(rng, size, period * 1.2, angle)
  nearest, _, value = cellular(rng, u, v)
  radius = 0.2 + 0.25 * value
  return np.exp(-(((nearest - radius) / 0.08) ** 2)), grain(rng, size)


@_pattern
def perforated_sheet(rng, size, period, angle):
  u, v = coordinates(rng, size, period, angle)
  half = rng.uniform(0.2, 0.35)
  inside = np.maximum(np.abs(u % 1 - 0.5), np.abs(v % 1 - 0.5))
  return step(half - inside, 0.12), 0.03 * noise(rng, size, 5)


@_pattern
def camouflage(rng, size, period, angle):
  del angle
  field = fractal(rng, size, REFERENCE_SIZE / period / 1.5 + 2, 2)
  weight = 0.5 * (step(field - 0.5, 0.15) + step(field + 0.4, 0.15))
  return weight, grain(rng, size)


@_pattern
def felt(rng, size, period, angle):
  del angle
  weight = np.zeros((size, size), np.float32)
  for _ in range(2):  # Ridges of noise look like fibres.
    field = noise(rng, size, REFERENCE_SIZE / period * 2)
    weight = np.maximum(weight, step(0.12 - np.abs(field), 0.2))
  return 0.8 * weight, grain(rng, size, 0.04)


def random_pattern(rng, size, pattern):
  return pattern(
    rng,
    size,
    random_palette(rng),
    np.exp(rng.uniform(np.log(5), np.log(24))),
    rng.uniform(0, 2 * np.pi),
  )


def pick_pattern(rng):
  return list(PATTERNS.values())[rng.integers(len(PATTERNS))]
