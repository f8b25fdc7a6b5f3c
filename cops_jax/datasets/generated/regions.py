"""Where a defect lies and which colours it takes from the image."""

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from cops_jax.datasets.generated.drawing import (
  REFERENCE_SIZE,
  SUPERSAMPLING,
  resize,
  step,
)


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
