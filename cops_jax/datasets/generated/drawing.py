"""Noise, coordinates, regions and colours of all generated images."""

import functools

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

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


def scale_of(image):
  return image.shape[0] / REFERENCE_SIZE


def pick_centre(rng, foreground, weight=None):
  """A random foreground pixel (row, column)."""
  candidates = np.flatnonzero(foreground)
  index = candidates[rng.integers(candidates.size)]
  if weight is not None:  # The best of a few, so that weight matters.
    several = candidates[rng.integers(candidates.size, size=12)]
    index = several[np.argmax(weight.ravel()[several])]
  return np.array(divmod(int(index), foreground.shape[1]), np.float32)


def blob(rng, foreground, softness, centre=None, fraction=(0.004, 0.08)):
  """Soft irregular region on the foreground, float32 (size, size) in [0, 1].

  Args:
    softness: Width of the edge ramp, relative to the radius.
    fraction: Range of the area relative to the image's, drawn log-uniformly.
  """
  size = foreground.shape[0]
  area = np.exp(rng.uniform(*np.log(fraction)))
  # A soft edge reaches further out; keep the visible area the same.
  radius = size * np.sqrt(area / np.pi) / (1 + 0.4 * softness)
  centre = pick_centre(rng, foreground) if centre is None else centre
  y, x = np.ogrid[:size, :size]
  y, x = y - centre[0], x - centre[1]
  angle, stretch = rng.uniform(0, np.pi), rng.uniform(1, 1.6)
  along = (x * np.cos(angle) + y * np.sin(angle)) / stretch
  across = (y * np.cos(angle) - x * np.sin(angle)) * stretch
  theta = np.arctan2(across, along)
  outline = np.ones_like(theta)
  roughness = rng.uniform(0.02, 0.2)
  for k in range(2, 7):
    phase = rng.uniform(0, 2 * np.pi)
    outline += rng.normal(0, roughness / np.sqrt(k)) * np.cos(k * theta + phase)
  ratio = np.hypot(along, across) / (radius * np.maximum(outline, 0.3))
  softness = max(softness, 1.0 / radius)
  return step(1 - ratio, softness).astype(np.float32) * foreground


def smooth_path(rng, start, length, bend, steps=24):
  """Curved path (steps, 2) of (row, column) around `start`, in pixels."""
  heading = rng.uniform(0, 2 * np.pi)
  turn = np.cumsum(rng.normal(0, bend / np.sqrt(steps), steps))
  turn = heading + turn + np.linspace(0, rng.normal(0, bend), steps)
  path = np.cumsum(np.stack([np.sin(turn), np.cos(turn)], 1), 0)
  return start + (path - path[steps // 2]) * length / steps


def strokes(size, paths, widths):
  """Antialiased coverage (size, size) of polylines with widths in pixels."""
  canvas = Image.new("L", (size * SUPERSAMPLING,) * 2)
  draw = ImageDraw.Draw(canvas)
  for path, width in zip(paths, widths, strict=True):
    points = ((path[:, ::-1] + 0.5) * SUPERSAMPLING).ravel().tolist()
    width = max(1, round(width * SUPERSAMPLING))
    draw.line(points, fill=255, width=width, joint="curve")
  return np.asarray(canvas.reduce(SUPERSAMPLING), np.float32) / 255


def polygon_coverage(size, corners):
  canvas = Image.new("L", (size * SUPERSAMPLING,) * 2)
  points = ((np.array(corners)[:, ::-1] + 0.5) * SUPERSAMPLING).ravel()
  ImageDraw.Draw(canvas).polygon(points.tolist(), fill=255)
  return np.asarray(canvas.reduce(SUPERSAMPLING), np.float32) / 255


def mean_colour(image, extent):
  weight = extent / max(float(extent.sum()), 1e-6)
  return np.tensordot(weight, image, ((0, 1), (0, 1)))


def other_colour(rng, image, extent, strength, tint=0.3):
  """A colour that differs from the region's mean by about `strength`."""
  mean = mean_colour(image, extent)
  direction = np.ones(3) + tint * rng.normal(0, 1, 3)
  direction /= np.abs(direction).max()
  sign = rng.choice([-1, 1])
  # Where there is no head-room, only the other sign can be seen.
  if not 0 <= mean.mean() + sign * strength <= 1:
    sign = 1 if mean.mean() < 0.5 else -1
  return np.clip(mean + sign * strength * direction, 0, 1).astype(np.float32)


def low_pass(image, cells):
  """Coarse version of the image, `cells` x `cells` box means, upsampled."""
  size = image.shape[0]
  channels = []
  for channel in np.moveaxis(image, -1, 0):
    small = Image.fromarray(np.ascontiguousarray(channel, np.float32))
    small = small.resize((cells, cells), Image.Resampling.BOX)
    channels.append(resize(small, size))
  return np.stack(channels, -1)


def background_colour(image, foreground):
  """Colour that shows where material is gone; None for a surface."""
  outside = ~foreground
  return np.median(image[outside], 0) if outside.mean() >= 0.05 else None


def sample(image, y, x):
  """The image at the given pixel coordinates."""
  channels = [
    ndimage.map_coordinates(channel, (y, x), order=1, mode="nearest")
    for channel in np.moveaxis(image, -1, 0)
  ]
  return np.stack(channels, -1)
