"""Noise, coordinates, regions and colours for all generated images."""

import functools

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

REFERENCE_SIZE = 112  # Side of the image in pixels that lengths refer to.
SUPERSAMPLING = 4


def resize(field, size):
  """Upsamples a 2-D array bicubically to (size, size)."""
  image = Image.fromarray(np.asarray(field, np.float32))
  return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def noise(rng, size, cells, columns=None):
  """Draws smooth noise of about unit variance from cells x columns points."""
  cells = max(2, min(size, int(cells)))
  columns = cells if columns is None else max(2, min(size, int(columns)))
  return resize(rng.standard_normal((cells, columns), np.float32), size)


def fractal(rng, size, cells, octaves=3):
  total = noise(rng, size, cells)
  for octave in range(1, octaves):
    total = total + noise(rng, size, cells * 2**octave) * 0.55**octave
  return total


def grain(rng, size, amount=0.03):
  """Draws fine noise for tones."""
  return amount * noise(rng, size, size // 2)


@functools.lru_cache(maxsize=4)
def pixel_grid(size):
  """Returns pixel centres (y, x) in reference pixels around the centre."""
  axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
  y, x = np.meshgrid(*[axis * REFERENCE_SIZE] * 2, indexing="ij")
  return y, x


def coordinates(rng, size, period, angle, warp=0.0):
  """Returns rotated and shifted coordinates (u, v) in periods."""
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
  """Returns a linear ramp from 0 to 1 over `width` around x = 0."""
  return np.clip(x / width + 0.5, 0, 1)


def mix(first, second, weight):
  return first + (second - first) * weight[..., None]


def per_cell(rng, u, v):
  """Draws one uniform random number in [0, 1) for each integer cell."""
  table = rng.random((64, 64), np.float32)
  i, j = (np.floor(index).astype(np.int64) % 64 for index in (u, v))
  return table[i, j]


def cellular(rng, u, v):
  """Returns distances to the two nearest points, and the nearest's value."""
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
  """Converts a hue in turns, a saturation and a value to a colour in [0, 1]."""
  channel = np.abs((hue + np.array([0, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1
  return value * (1 - saturation + saturation * np.clip(channel, 0, 1))


def random_palette(rng):
  """Draws two different colours to mix, (2, 3)."""
  first = hsv(rng.random(), rng.beta(1, 2.2), rng.uniform(0.2, 0.95))
  for _ in range(8):
    hue = rng.random()
    second = hsv(hue, rng.beta(1, 2.2), rng.uniform(0.1, 0.95))
    if np.abs(first - second).max() > 0.2:
      break
  # In products, low contrast is as common as high contrast.
  second = first + (second - first) * rng.uniform(0.3, 1)
  return np.array([first, second], np.float32)


def jitter(rng, *colours):
  """Varies the fixed colours of a category slightly, mostly in common."""
  colours = np.array(colours, np.float32)
  common = rng.normal(0, 0.018, (1, 3)) + rng.normal(0, 0.036)
  return np.clip(
    colours + common + rng.normal(0, 0.009, colours.shape), 0.03, 0.97
  ).astype(np.float32)


def scale_of(image):
  return image.shape[0] / REFERENCE_SIZE


def pick_centre(rng, foreground, weight=None):
  """Draws a foreground pixel (row, column), preferably one of high weight."""
  candidates = np.flatnonzero(foreground)
  index = candidates[rng.integers(candidates.size)]
  if weight is not None:  # Take the best of a few candidates.
    several = candidates[rng.integers(candidates.size, size=12)]
    index = several[np.argmax(weight.ravel()[several])]
  return np.array(divmod(int(index), foreground.shape[1]), np.float32)


def blob(rng, foreground, softness, centre=None, fraction=(0.004, 0.08)):
  """Draws a soft, irregular region, float32 (size, size) in [0, 1].

  `softness` is the width of the edge relative to the radius, and `fraction` the
  range of the area relative to the image, which is drawn log-uniformly.
  """
  size = foreground.shape[0]
  area = np.exp(rng.uniform(*np.log(fraction)))
  # A soft edge extends further; keep the visible area the same.
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
  """Draws a curved path (steps, 2) of (row, column) around `start`."""
  heading = rng.uniform(0, 2 * np.pi)
  turn = np.cumsum(rng.normal(0, bend / np.sqrt(steps), steps))
  turn = heading + turn + np.linspace(0, rng.normal(0, bend), steps)
  path = np.cumsum(np.stack([np.sin(turn), np.cos(turn)], 1), 0)
  return start + (path - path[steps // 2]) * length / steps


def strokes(size, paths, widths):
  """Returns the antialiased coverage (size, size) of lines of given widths."""
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
  """Draws a colour that differs by about `strength` from the region's mean."""
  mean = mean_colour(image, extent)
  direction = np.ones(3) + tint * rng.normal(0, 1, 3)
  direction /= np.abs(direction).max()
  sign = rng.choice([-1, 1])
  # If the colour would leave [0, 1], only the other sign is visible.
  if not 0 <= mean.mean() + sign * strength <= 1:
    sign = 1 if mean.mean() < 0.5 else -1
  return np.clip(mean + sign * strength * direction, 0, 1).astype(np.float32)


def low_pass(image, cells):
  """Returns the upsampled means of `cells` x `cells` boxes of the image."""
  size = image.shape[0]
  channels = []
  for channel in np.moveaxis(image, -1, 0):
    small = Image.fromarray(np.ascontiguousarray(channel, np.float32))
    small = small.resize((cells, cells), Image.Resampling.BOX)
    channels.append(resize(small, size))
  return np.stack(channels, -1)


def background_colour(image, foreground):
  """Returns the colour visible behind an object; None for a surface."""
  outside = ~foreground
  return np.median(image[outside], 0) if outside.mean() >= 0.05 else None


def sample(image, y, x):
  """Samples the image at the given pixel coordinates."""
  channels = [
    ndimage.map_coordinates(channel, (y, x), order=1, mode="nearest")
    for channel in np.moveaxis(image, -1, 0)
  ]
  return np.stack(channels, -1)
