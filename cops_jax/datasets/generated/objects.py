"""Objects: lit outlines filled with a material, on a background.

An outline is a function `(rng) -> layers`. Layers are pairs of points, (n, 2)
in about [-1, 1], and a tone, drawn in their order. The tone None cuts a hole, 0
is the body's material, and other values in [-1, 1] brighten or darken it.
"""

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from cops_jax.datasets.generated.drawing import (
  REFERENCE_SIZE,
  SUPERSAMPLING,
  mix,
  noise,
)


def plain_material(rng, size, colour, amount=0.02):
  """Draws a nearly uniform material with faint blotches and grain."""
  tone = amount * (noise(rng, size, 5) + 0.7 * noise(rng, size, size // 2))
  return np.asarray(colour, np.float32) * (1 + tone)[..., None]


def draw_object(
  rng, size, layers, material, background, extent, angle, aspect=1
):
  """Draws layers of a material on a background, with a bevel and a shadow."""
  radius = rng.uniform(*extent)
  shift = rng.uniform(-1, 1, 2) * np.clip(52 - radius, 2, 9)
  rotation = np.array(
    [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
  )
  canvas = size * SUPERSAMPLING
  alpha = Image.new("L", (canvas,) * 2)
  detail = Image.new("L", (canvas,) * 2, 128)
  draw_alpha, draw_detail = ImageDraw.Draw(alpha), ImageDraw.Draw(detail)
  for points, tone in layers:
    points = (points * [1, aspect]) @ rotation * radius + shift
    points = (points / REFERENCE_SIZE + 0.5) * canvas
    points = points.ravel().tolist()
    draw_alpha.polygon(points, fill=0 if tone is None else 255)
    if tone is not None:
      draw_detail.polygon(points, fill=int(128 + 120 * np.clip(tone, -1, 1)))
  alpha = np.asarray(alpha.reduce(SUPERSAMPLING), np.float32) / 255
  detail = np.asarray(detail.reduce(SUPERSAMPLING), np.float32) / 128 - 1
  # Tones use the range that the brightness of the material leaves.
  mean = material.mean()
  detail = 0.8 * detail * np.where(detail > 0, 1 - mean, 0.9 * mean + 0.1)
  body = material + detail[..., None]
  # The bevel is the slope of the blurred silhouette, lit from one side.
  scale = size / REFERENCE_SIZE
  soft = ndimage.uniform_filter(alpha, int(2 * (2 * scale) + 1))
  slope_y, slope_x = np.gradient(soft)
  light = rng.uniform(0, 2 * np.pi)
  relief = np.cos(light) * slope_x + np.sin(light) * slope_y
  body = body * (1 + rng.uniform(0.3, 1.2) * scale * relief)[..., None]
  # A faint highlight, at a different place in each image.
  body = body + 0.06 * rng.random() * noise(rng, size, 3)[..., None]
  offset = np.round(
    rng.uniform(1, 4) * scale * np.array([np.sin(light), np.cos(light)])
  ).astype(int)
  shadow = np.roll(soft, tuple(offset), (0, 1)) * rng.uniform(0, 0.4)
  image = mix(background * (1 - shadow)[..., None], body, alpha)
  return image, alpha > 0.5


def ellipse(x=0.0, y=0.0, a=1.0, b=None):
  t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
  b = a if b is None else b
  return np.stack([x + a * np.cos(t), y + b * np.sin(t)], 1)


def box(x0, y0, x1, y1, radius=0.0):
  radius = min(radius, (x1 - x0) / 2, (y1 - y0) / 2)
  if radius <= 0:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
  t = np.linspace(0, np.pi / 2, 8)
  corners = [
    (x1 - radius, y1 - radius, 0),
    (x0 + radius, y1 - radius, 1),
    (x0 + radius, y0 + radius, 2),
    (x1 - radius, y0 + radius, 3),
  ]
  arcs = []
  for x, y, quarter in corners:
    a = t + quarter * np.pi / 2
    arcs.append(np.stack([x + radius * np.cos(a), y + radius * np.sin(a)], 1))
  return np.concatenate(arcs)


def radial(radii):
  """Returns a closed outline with the given radii at equally spaced angles."""
  t = np.arange(len(radii)) * 2 * np.pi / len(radii)
  return np.stack([radii * np.cos(t), radii * np.sin(t)], 1)


def ring(rng):
  return [(ellipse(), 0), (ellipse(a=rng.uniform(0.3, 0.7)), None)]


def two_tone_capsule(rng, b, tone):
  del rng
  half = box(-1, -b, 1, b, b)
  half[:, 0] = np.maximum(half[:, 0], 0)
  return [(box(-1, -b, 1, b, b), 0), (half, tone)]


def circuit_chip(rng, pins):
  b = rng.uniform(0.5, 0.65)
  layers = []
  for x in np.linspace(-0.8, 0.8, pins):
    layers.append((box(x - 0.06, -b - 0.25, x + 0.06, b + 0.25), 0.9))
  layers.append((box(-1, -b, 1, b, 0.05), 0))
  layers.append((ellipse(-0.78, -b + 0.2, 0.09), 0.25))
  if rng.random() < 0.7:
    for k in range(rng.integers(3, 7)):
      x = -0.4 + 0.17 * k
      layers.append((box(x, -0.1, x + 0.1, 0.1), 0.3))
  return layers
