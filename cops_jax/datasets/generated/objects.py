"""Objects: outlines filled with a material, lit, on a background."""

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
  """A nearly uniform material with faint blotches and grain."""
  tone = amount * (noise(rng, size, 5) + 0.7 * noise(rng, size, size // 2))
  return np.asarray(colour, np.float32) * (1 + tone)[..., None]


def draw_object(
  rng, size, layers, material, background, extent, angle, aspect=1
):
  """Draws layers of a material on a background, with bevel and shadow."""
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
  # Tones use the head-room that a dark or bright material has left.
  mean = material.mean()
  detail = 0.8 * detail * np.where(detail > 0, 1 - mean, 0.9 * mean + 0.1)
  body = material + detail[..., None]
  # Bevel: the slope of the blurred silhouette, lit from one side.
  scale = size / REFERENCE_SIZE
  soft = ndimage.uniform_filter(alpha, int(2 * (2 * scale) + 1))
  slope_y, slope_x = np.gradient(soft)
  light = rng.uniform(0, 2 * np.pi)
  relief = np.cos(light) * slope_x + np.sin(light) * slope_y
  body = body * (1 + rng.uniform(0.3, 1.2) * scale * relief)[..., None]
  # A gentle highlight that drifts over the object from image to image.
  body = body + 0.06 * rng.random() * noise(rng, size, 3)[..., None]
  offset = np.round(
    rng.uniform(1, 4) * scale * np.array([np.sin(light), np.cos(light)])
  ).astype(int)
  shadow = np.roll(soft, tuple(offset), (0, 1)) * rng.uniform(0, 0.4)
  image = mix(background * (1 - shadow)[..., None], body, alpha)
  return image, alpha > 0.5
