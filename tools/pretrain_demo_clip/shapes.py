"""Outlines of objects for the pretraining only; see `generated.objects`."""

import numpy as np

from cops_jax.datasets.generated import objects
from cops_jax.datasets.generated.objects import box, ellipse, radial, ring


def _tone(rng):
  return rng.choice([-1, 1]) * rng.uniform(0.15, 0.5)


def disc(rng):
  inner = rng.uniform(0.4, 0.85)
  layers = [(ellipse(), 0)]
  return layers + [(ellipse(a=inner), _tone(rng))] * (rng.random() < 0.5)


def plate(rng):
  b = rng.uniform(0.6, 1)
  layers = [(box(-1, -b, 1, b, rng.uniform(0.05, 0.5)), 0)]
  if rng.random() < 0.5:
    m = rng.uniform(0.15, 0.3)
    layers.append((box(m - 1, m - b, 1 - m, b - m, 0.1), _tone(rng)))
  return layers


def star(rng):
  points = rng.integers(4, 7)
  radii = np.ones(2 * points)
  radii[1::2] = rng.uniform(0.35, 0.6)
  return [(radial(radii), 0)]


def cross(rng):
  w, r = rng.uniform(0.2, 0.4), rng.uniform(0, 0.15)
  return [(box(-1, -w, 1, w, r), 0), (box(-w, -1, w, 1, r), 0)]


def polygon(rng):
  sides = rng.choice([3, 4, 5, 8])
  layers = [(radial(np.ones(sides)), 0)]
  inner = radial(np.full(sides, rng.uniform(0.4, 0.7)))
  return layers + [(inner, _tone(rng))] * (rng.random() < 0.4)


def screw(rng):
  head, shaft = rng.uniform(0.35, 0.5), rng.uniform(0.16, 0.26)
  layers = [(box(-1, -head, -0.6, head, 0.1), 0)]
  layers.append((box(-0.6, -shaft, 1, shaft, 0.05), 0))
  for x in np.arange(-0.35, 0.9, rng.uniform(0.12, 0.2)):
    line = [
      (x, -shaft),
      (x + 0.05, -shaft),
      (x + 0.1, shaft),
      (x + 0.05, shaft),
    ]
    layers.append((np.array(line), -0.35))
  return layers


def bottle_top(rng):
  radii = np.sort(rng.uniform(0.25, 0.95, 3))[::-1]
  tones = rng.uniform(-0.5, 0.5, 3)
  return [(ellipse(), 0)] + [
    (ellipse(a=a), tone) for a, tone in zip(radii, tones, strict=True)
  ]


def keyhole_plate(rng):
  b, r = rng.uniform(0.6, 1), rng.uniform(0.15, 0.25)
  return [
    (box(-1, -b, 1, b, 0.2), 0),
    (ellipse(-0.2, 0, r), None),
    (box(-0.2, -r / 2, 0.5, r / 2), None),
  ]


def arrow(rng):
  w, neck = rng.uniform(0.15, 0.3), rng.uniform(-0.1, 0.3)
  head = [(neck, -0.7), (1, 0), (neck, 0.7)]
  return [(box(-1, -w, neck + 0.02, w), 0), (np.array(head), 0)]


def ellipse_cluster(rng):
  layers = []
  for _ in range(rng.integers(3, 8)):
    x, y = rng.uniform(-0.6, 0.6, 2)
    a, b = rng.uniform(0.2, 0.42, 2)
    layers.append((ellipse(x, y, a, b), rng.uniform(-0.3, 0.3)))
  return layers


def bracket(rng):
  w = rng.uniform(0.35, 0.6)
  hole = rng.uniform(0.08, 0.14)
  return [
    (box(-1, -1, 1, w - 1, 0.08), 0),
    (box(-1, -1, w - 1, 1, 0.08), 0),
    (ellipse(0.7, w / 2 - 1, hole), None),
    (ellipse(w / 2 - 1, 0.7, hole), None),
  ]


def bolt_plate(rng):
  d, r = rng.uniform(0.6, 0.72), rng.uniform(0.1, 0.16)
  corners = [(x, y) for x in (-d, d) for y in (-d, d)]
  outline = box(-1, -1, 1, 1, 0.25) if rng.random() < 0.5 else ellipse(a=1.1)
  return [(outline, 0)] + [(ellipse(x, y, r), None) for x, y in corners]


def pebble(rng):
  t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
  radii = 0.8 + 0 * t
  for k in (2, 3, 4):
    radii += rng.normal(0, 0.09) * np.cos(k * t + rng.uniform(0, 6))
  return [(radial(radii), 0)]


def button(rng):
  holes, r = rng.choice([2, 4]), rng.uniform(0.09, 0.14)
  t = np.arange(holes) * 2 * np.pi / holes
  layers = [(ellipse(), 0), (ellipse(a=rng.uniform(0.65, 0.85)), -0.15)]
  return layers + [
    (ellipse(0.28 * np.cos(a), 0.28 * np.sin(a), r), None) for a in t
  ]


def retaining_clip(rng):
  w = rng.uniform(0.18, 0.28)
  t = np.linspace(0.6, 2 * np.pi - 0.6, 40)
  outer = np.stack([np.cos(t), np.sin(t)], 1)
  return [(np.concatenate([outer, outer[::-1] * (1 - 2 * w)]), 0)]


def connector(rng):
  rows, columns = rng.integers(1, 4), rng.integers(3, 7)
  layers = [(box(-1, -0.18 * rows - 0.15, 1, 0.18 * rows + 0.15, 0.1), 0)]
  tone = _tone(rng)
  for y in (np.arange(rows) - (rows - 1) / 2) * 0.36:
    for x in (np.arange(columns) - (columns - 1) / 2) * 1.7 / columns:
      layers.append((box(x - 0.09, y - 0.09, x + 0.09, y + 0.09), tone))
  return layers


def two_tone_capsule(rng):
  b = rng.uniform(0.3, 0.55)
  return objects.two_tone_capsule(rng, b, _tone(rng))


def circuit_chip(rng):
  return objects.circuit_chip(rng, rng.integers(4, 8))


SHAPES = (
  disc,
  ring,
  plate,
  two_tone_capsule,
  star,
  cross,
  polygon,
  screw,
  bottle_top,
  circuit_chip,
  keyhole_plate,
  arrow,
  ellipse_cluster,
  bracket,
  bolt_plate,
  pebble,
  button,
  retaining_clip,
  connector,
)
