"""Outlines of the objects in training categories.

Each is `(rng) -> layers`, a list of (points (n, 2) in about [-1, 1], tone):
tone None cuts a hole, 0 is the body's material, other values in [-1, 1]
brighten or darken the body. Later layers lie on top.
"""

import numpy as np


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
  """Closed outline with the given radii at equally spaced angles."""
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
