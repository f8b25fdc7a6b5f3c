"""Noise, coordinates and colours that all generated images are drawn with."""

import functools

import numpy as np
from PIL import Image

REFERENCE_SIZE = 112  # Pixels; the unit of all lengths.
SUPERSAMPLING = 4


def resize(field, size):
  """Bicubic upsampling of a 2-D array to (size, size)."""
  image = Image.fromarray(np.asarray(field, np.float32))
  return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def noise(rng, size, cells, columns=None):
  """Smooth noise, about unit variance, `cells` x `columns` control points."""
  cells = max(2, min(size, int(cells)))
  columns = cells if columns is None else max(2, min(size, int(columns)))
  return resize(rng.standard_normal((cells, columns), np.float32), size)


def fractal(rng, size, cells, octaves=3):
  total = noise(rng, size, cells)
  for octave in range(1, octaves):
    total = total + noise(rng, size, cells * 2**octave) * 0.55**octave
  return total


def grain(rng, size, amount=0.03):
  """Fine noise, to be added to tones."""
  return amount * noise(rng, size, size // 2)


@functools.lru_cache(maxsize=4)
def pixel_grid(size):
  """Pixel centres (y, x), float32, in reference pixels around the centre."""
  axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
  y, x = np.meshgrid(*[axis * REFERENCE_SIZE] * 2, indexing="ij")
  return y, x


def coordinates(rng, size, period, angle, warp=0.0):
  """Rotated, shifted coordinates (u, v) counted in periods."""
  y, x = pixel_grid(size)
  cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
  shift = rng.uniform(50, 60, 2).astype(np.float32)
  u = (cos * x + sin * y) / np.float32(period) + shift[0]
  v = (cos * y - sin * x) / np.float32(period) + shift[1]
  if warp:
    u = u + warp * noise(rng, size, 4)
    v = v + warp * noise(rng, size, 4)
  return u, v


def step(x, width=0.1):
  """Linear ramp from 0 to 1 over `width` around x = 0."""
  return np.clip(x / width + 0.5, 0, 1)


def mix(first, second, weight):
  return first + (second - first) * weight[..., None]


def per_cell(rng, u, v):
  """One uniform random number in [0, 1) for each integer cell."""
  table = rng.random((64, 64), np.float32)
  i, j = (np.floor(index).astype(np.int64) % 64 for index in (u, v))
  return table[i, j]


def cellular(rng, u, v):
  """Distances to the two nearest jittered points and the nearest's value."""
  table = rng.random((3, 64, 64), np.float32)
  column, row = np.floor(u), np.floor(v)
  nearest = np.full(u.shape, 9, np.float32)
  second = nearest.copy()
  value = np.zeros_like(nearest)
  for dv in (-1, 0, 1):
    for du in (-1, 0, 1):
      point = table[
        :, (row + dv).astype(np.int32) % 64, (column + du).astype(np.int32) % 64
      ]
      distance = np.hypot(column + du + point[0] - u, row + dv + point[1] - v)
      closer = distance < nearest
      second = np.where(closer, nearest, np.minimum(second, distance))
      value = np.where(closer, point[2], value)
      nearest = np.where(closer, distance, nearest)
  return nearest, second, value


def hsv(hue, saturation, value):
  """Colour (3,) in [0, 1] of hue (in turns), saturation and value."""
  channel = np.abs((hue + np.array([0, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1
  return value * (1 - saturation + saturation * np.clip(channel, 0, 1))


def random_palette(rng):
  """Two to-be-mixed colours, (2, 3), at least moderately different."""
  first = hsv(rng.random(), rng.beta(1, 2.2), rng.uniform(0.2, 0.95))
  for _ in range(8):
    hue = rng.random()
    second = hsv(hue, rng.beta(1, 2.2), rng.uniform(0.1, 0.95))
    if np.abs(first - second).max() > 0.2:
      break
  # Low contrast between the two is as common in products as high contrast.
  second = first + (second - first) * rng.uniform(0.3, 1)
  return np.array([first, second], np.float32)


def jitter(rng, *colours):
  """The fixed colours of a demo category with a small common variation."""
  colours = np.array(colours, np.float32)
  common = rng.normal(0, 0.018, (1, 3)) + rng.normal(0, 0.036)
  return np.clip(
    colours + common + rng.normal(0, 0.009, colours.shape), 0.03, 0.97
  ).astype(np.float32)
