"""Kinds of defects, seen and unseen in training.

A paint function is `(rng, image, foreground, strength) -> (changed, extent)`:
the image with the defect, and the soft or binary extent that it can occupy.
`strength` in (0, 1] is the amplitude of the change in units of full scale.
"""

import numpy as np
from scipy import ndimage

from cops_jax.datasets.generated.drawing import (
  background_colour,
  blob,
  low_pass,
  mean_colour,
  mix,
  noise,
  other_colour,
  pick_centre,
  polygon_coverage,
  sample,
  scale_of,
  smooth_path,
  strokes,
)
from cops_jax.datasets.generated.patterns import pick_pattern, random_pattern

_MIN_MASK_PIXELS = 12
# Smallest change, in units of full scale, that counts as part of a defect.
_MIN_CHANGE = 0.02


def _defect(paint):
  """Converts a paint function to `(rng, image, foreground) -> (image, mask)`.

  The mask contains the visibly changed pixels; the other pixels keep their
  values. A change that is too faint or small is painted again, more strongly.
  """

  def defect(rng, image, foreground):
    # About a quarter of the defects are hard to see.
    low, high = (0.07, 0.14) if rng.random() < 0.25 else (0.18, 0.6)
    strength = rng.uniform(low, high)
    for attempt in range(20):
      # Some changes are not visible everywhere, such as blur on plain areas.
      painter = paint if attempt < 9 else stain
      changed, extent = painter(rng, image, foreground, min(strength, 1.0))
      changed = np.clip(changed, 0, 1).astype(np.float32)
      difference = np.abs(changed - image).max(-1)
      peak = difference.max()
      threshold = max(_MIN_CHANGE, 0.12 * peak)
      mask = difference > threshold
      # Pixels inside the defect belong to it even if they keep their values.
      mask |= ndimage.binary_fill_holes(
        ndimage.binary_closing(mask, np.ones((3, 3)))
      ) & (extent > 0.3)
      if mask.sum() >= _MIN_MASK_PIXELS and peak > 2.5 * _MIN_CHANGE:
        return np.where(mask[..., None], changed, image), mask
      strength = 1.5 * strength + 0.05
    raise RuntimeError("The foreground is too small for a visible defect.")

  return defect


def scratch(rng, image, foreground, strength):
  size, scale = image.shape[0], scale_of(image)
  paths, widths = [], []
  path = smooth_path(
    rng,
    pick_centre(rng, foreground),
    rng.uniform(14, 60) * scale,
    rng.uniform(0, 0.5),
  )
  for _ in range(rng.integers(1, 4)):
    paths.append(path + rng.normal(0, 2.5 * scale, (1, 2)))
    widths.append(rng.uniform(0.7, 2) * scale)
  extent = strokes(size, paths, widths) * foreground
  colour = other_colour(rng, image, extent, strength, 0.1)
  return mix(image, colour, extent * rng.uniform(0.7, 1)), extent


def crack(rng, image, foreground, strength):
  size, scale = image.shape[0], scale_of(image)
  heading = rng.uniform(0, 2 * np.pi)
  paths, widths = [], []
  start, length = pick_centre(rng, foreground), rng.uniform(20, 60) * scale
  for branch in range(1 + rng.integers(0, 4)):
    turn = heading + rng.normal(0, 0.6 if branch == 0 else 0.9)
    turn = turn + rng.normal(0, 0.55, 14)
    step = length / 14 * rng.uniform(0.5, 1.5, (14, 1))
    path = np.cumsum(np.stack([np.sin(turn), np.cos(turn)], 1) * step, 0)
    paths.append(start + path)
    widths.append(rng.uniform(0.8, 1.8) * scale * (1 if branch == 0 else 0.7))
    start = paths[0][rng.integers(2, 12)]
    length = rng.uniform(8, 25) * scale
  extent = strokes(size, paths, widths) * foreground
  dark = mean_colour(image, extent) * (1 - min(1, 1.6 * strength))
  return mix(image, dark.astype(np.float32), extent), extent


def thread(rng, image, foreground, strength):
  size, scale = image.shape[0], scale_of(image)
  path = smooth_path(
    rng,
    pick_centre(rng, foreground),
    rng.uniform(20, 70) * scale,
    rng.uniform(1, 3),
    40,
  )
  width = rng.uniform(0.9, 2.2) * scale
  extent = strokes(size, [path], [width])
  # A fibre can reach beyond the object, unlike damage to its material.
  reach = ndimage.binary_dilation(foreground, iterations=round(4 * scale) + 1)
  extent = extent * reach
  colour = other_colour(rng, image, extent, strength, 1.5)
  return mix(image, colour, extent), extent


def stain(rng, image, foreground, strength):
  extent = blob(rng, foreground, rng.uniform(0.3, 0.9))
  texture = 1 + 0.25 * noise(rng, image.shape[0], 14)
  colour = other_colour(rng, image, extent, strength, 0.5)
  mean = mean_colour(image, extent).astype(np.float32)
  # A shift of the colours leaves the texture visible.
  shift = (colour - mean) * (extent * np.clip(texture, 0.3, 1.5))[..., None]
  return image + shift, extent


def hole(rng, image, foreground, strength):
  extent = blob(rng, foreground, 0.15, fraction=(0.003, 0.03))
  rim = extent * (1 - ndimage.uniform_filter(extent, 5)) * 2
  depth = 1 - min(1, 0.1 + 1.5 * strength)
  changed = image * (1 - extent * (1 - depth))[..., None]
  light = rng.choice([-1, 1]) * 0.5 * strength
  return changed + light * np.clip(rim, 0, 1)[..., None], extent


def missing(rng, image, foreground, strength):
  extent = blob(rng, foreground, 0.12)
  fill = background_colour(image, foreground)
  if fill is None:
    fill = low_pass(image, 6)
    fill = fill + 0.3 * strength * rng.choice([-1, 1])
  return mix(image, fill, extent * min(1, 0.4 + strength)), extent


def color_shift(rng, image, foreground, strength):
  extent = blob(rng, foreground, rng.uniform(0.1, 0.5))
  # Opposite shifts of the channels change the hue and not the brightness.
  shift = rng.normal(0, 1, 3)
  shift -= shift.mean()
  shift *= strength / np.abs(shift).max()
  mixed = image + shift.astype(np.float32)
  if rng.random() < 0.3:
    mixed = mixed[..., rng.permutation(3)]
  return mix(image, mixed, extent), extent


def rough(rng, image, foreground, strength):
  size = image.shape[0]
  extent = blob(rng, foreground, rng.uniform(0.2, 0.6))
  grain = noise(rng, size, size / rng.uniform(1, 3))[..., None]
  if rng.random() < 0.3:
    fine = noise(rng, size, size // 2)[..., None]
    grain = grain + fine * rng.normal(0, 1, 3)
  return image + 0.6 * strength * grain * extent[..., None], extent


def blur(rng, image, foreground, strength):
  scale = scale_of(image)
  detail = np.abs(image.mean(-1) - low_pass(image, 28).mean(-1))
  detail = ndimage.uniform_filter(detail, int(9 * scale))
  reach = ndimage.binary_dilation(foreground, iterations=round(2 * scale) + 1)
  centre = pick_centre(rng, foreground, detail)
  extent = blob(rng, reach, 0.3, centre, (0.01, 0.08))
  width = int((3 + 8 * strength) * scale)
  smooth = ndimage.uniform_filter(image, (width, width, 1))
  return mix(image, smooth, extent), extent


def particles(rng, image, foreground, strength):
  extent = np.zeros(foreground.shape, np.float32)
  centre = pick_centre(rng, foreground)
  for _ in range(rng.integers(1, 6)):
    spot = centre + rng.normal(0, 7 * scale_of(image), 2)
    spot = np.clip(spot, 0, foreground.shape[0] - 1)
    extent = np.maximum(
      extent, blob(rng, foreground, 0.3, spot, (0.0008, 0.006))
    )
  colour = other_colour(rng, image, extent, strength, 0.8)
  return mix(image, colour, extent), extent


def smudge(rng, image, foreground, strength):
  size, scale = image.shape[0], scale_of(image)
  start = pick_centre(rng, foreground)
  path = smooth_path(rng, start, rng.uniform(10, 35) * scale, 0.4)
  width = rng.uniform(4, 12) * scale
  extent = ndimage.uniform_filter(
    strokes(size, [path], [width]), int(5 * scale)
  )
  streaks = np.clip(0.6 + 0.4 * noise(rng, size, 40, 12), 0.1, 1)
  extent = extent * streaks * foreground
  colour = other_colour(rng, image, extent, strength, 0.3)
  return mix(image, colour, extent * 0.9), extent


def dent(rng, image, foreground, strength):
  height = blob(rng, foreground, 1.2, fraction=(0.01, 0.08))
  light = rng.uniform(0, 2 * np.pi)
  slope_y, slope_x = np.gradient(height)
  relief = np.cos(light) * slope_x + np.sin(light) * slope_y
  relief = relief / max(float(np.abs(relief).max()), 1e-6) * foreground
  return image + 0.9 * strength * relief[..., None], height


def warp(rng, image, foreground, strength):
  size = image.shape[0]
  centre = pick_centre(rng, foreground)
  reach = ndimage.binary_dilation(
    foreground, iterations=round(3 * scale_of(image)) + 1
  )
  extent = blob(rng, reach, 0.8, centre, (0.015, 0.08))
  y, x = np.mgrid[:size, :size].astype(np.float32)
  dy, dx = y - centre[0], x - centre[1]
  if rng.random() < 0.6:  # A swirl; otherwise a shift in one direction.
    turn = extent * rng.choice([-1, 1]) * (0.5 + 2 * strength)
    y = centre[0] + np.cos(turn) * dy - np.sin(turn) * dx
    x = centre[1] + np.sin(turn) * dy + np.cos(turn) * dx
  else:
    angle = rng.uniform(0, 2 * np.pi)
    reach = (2 + 10 * strength) * scale_of(image) * extent
    y, x = y + np.sin(angle) * reach, x + np.cos(angle) * reach
  return np.where(extent[..., None] > 0, sample(image, y, x), image), extent


def burn(rng, image, foreground, strength):
  extent = blob(rng, foreground, 1.0)
  ragged = np.clip(extent + 0.15 * noise(rng, image.shape[0], 24), 0, 1)
  ragged = ragged * (extent > 0)
  # Brown where scorched, black where charred.
  scorch = np.array([0.75, 0.5, 0.3], np.float32) ** (3 * strength)
  char = np.clip(2 * ragged - 1, 0, 1) * min(1, 1.5 * strength)
  changed = mix(image, image * scorch, ragged)
  return changed * (1 - 0.85 * char)[..., None], extent


def cut(rng, image, foreground, strength):
  size, scale = image.shape[0], scale_of(image)
  fill = background_colour(image, foreground)
  if fill is None:
    # A surface has no border: draw a gouge with a dark and a bright facet.
    start = pick_centre(rng, foreground)
    path = smooth_path(rng, start, rng.uniform(12, 35) * scale, 0.1, 2)
    along = path[1] - path[0]
    across = along[::-1] * [1, -1] / np.hypot(*along)
    width = rng.uniform(3, 8) * scale
    tip = path.mean(0)
    dark, bright = (
      polygon_coverage(size, [path[0], tip + s * width * across, path[1]])
      for s in (-1, 1)
    )
    changed = image * (1 - min(1, 1.5 * strength) * dark)[..., None]
    changed = changed + 0.6 * strength * bright[..., None]
    return changed, np.maximum(dark, bright)
  edge = foreground & ~ndimage.binary_erosion(foreground, iterations=2)
  start = pick_centre(rng, edge)
  # Inwards is towards more of the object, also at the rim of a hole.
  near = ndimage.uniform_filter(foreground.astype(np.float32), 9)
  row, column = start.astype(int)
  inwards = [np.gradient(near, axis=axis)[row, column] for axis in (0, 1)]
  heading = np.arctan2(*inwards) + rng.normal(0, 0.3)
  depth = rng.uniform(6, 18) * scale
  opening = rng.uniform(0.25, 0.7)
  along = np.array([np.sin(heading), np.cos(heading)])
  across = depth * opening * np.array([np.cos(heading), -np.sin(heading)])
  outside = start - 3 * scale * along
  apex = start + depth * along + rng.normal(0, 2 * scale, 2)
  corners = [outside - across, apex, outside + across]
  reach = ndimage.binary_dilation(foreground)
  extent = polygon_coverage(size, corners) * reach
  return mix(image, fill, extent * min(1, 0.4 + strength)), extent


def wrong_patch(rng, image, foreground, strength):
  extent = blob(rng, foreground, 0.08, fraction=(0.008, 0.08))
  if rng.random() < 0.5 and foreground.all():
    other = np.rot90(image, rng.integers(1, 4))
    other = np.roll(other, tuple(rng.integers(10, 60, 2)), (0, 1))
  else:
    other = random_pattern(rng, image.shape[0], pick_pattern(rng))
  return mix(image, other, extent * min(1, 0.3 + 1.5 * strength)), extent


def droplet(rng, image, foreground, strength):
  size = image.shape[0]
  centre = pick_centre(rng, foreground)
  extent = np.zeros(foreground.shape, np.float32)
  for k in range(rng.integers(1, 4)):
    spot = centre + (k > 0) * rng.normal(0, 10 * scale_of(image), 2)
    extent = np.maximum(
      extent, blob(rng, foreground, 0.15, spot, (0.003, 0.025))
    )
  height = ndimage.uniform_filter(extent, int(5 * scale_of(image)))
  slope_y, slope_x = np.gradient(height)
  # A droplet is a lens: it displaces the image below and shines on one side.
  y, x = np.mgrid[:size, :size].astype(np.float32)
  bend = 25 * extent * scale_of(image)
  changed = sample(image, y + bend * slope_y, x + bend * slope_x)
  shine = (slope_x + slope_y) * 8 * strength * extent
  # Wet material is slightly darker or lighter than dry material.
  shine = shine + rng.choice([-0.3, 0.2]) * strength * extent
  return np.where(
    extent[..., None] > 0, changed + shine[..., None], image
  ), extent


_SEEN = (
  *(scratch, crack, thread, stain, hole, missing, color_shift, rough, blur),
  *(particles, smudge, dent),
)
_UNSEEN = (warp, burn, cut, wrong_patch, droplet)
SEEN_DEFECTS = {paint.__name__: _defect(paint) for paint in _SEEN}
UNSEEN_DEFECTS = {paint.__name__: _defect(paint) for paint in _UNSEEN}
DEFECTS = SEEN_DEFECTS | UNSEEN_DEFECTS
