"""The categories that the toy CLIP is pretrained on.

They are the training categories of `cops_jax.datasets.generated` and many more
that only the pretraining uses. None of them is an evaluation category.
"""

import functools

import numpy as np

from cops_jax.datasets import generated
from cops_jax.datasets.generated.drawing import hsv, random_palette
from cops_jax.datasets.generated.objects import draw_object, plain_material
from cops_jax.datasets.generated.patterns import (
  PATTERNS,
  pick_pattern,
  random_pattern,
)
from tools.pretrain_demo_clip.shapes import SHAPES


def _random_object(rng, size, shape):
  pattern = pick_pattern(rng) if rng.random() < 0.5 else None
  for _ in range(8):
    if pattern is None:
      material = plain_material(
        rng, size, random_palette(rng)[0], rng.uniform(0, 0.06)
      )
    else:
      material = random_pattern(rng, size, pattern)
    colour = hsv(
      rng.random(),
      0.6 * rng.beta(1, 3),
      rng.choice([rng.uniform(0.03, 0.3), rng.uniform(0.5, 0.97)]),
    )
    if np.abs(material.mean((0, 1)) - colour).max() > 0.2:
      break
  background = plain_material(rng, size, colour, rng.uniform(0, 0.05))
  return draw_object(
    rng,
    size,
    shape(rng),
    material,
    background,
    (30, 46),
    rng.uniform(0, 2 * np.pi),
    rng.uniform(0.75, 1),
  )


CATEGORIES = {
  name: generated.CATEGORIES[name] for name in generated.TRAINING_CATEGORIES
}
CATEGORIES |= {
  name: generated.Category(
    name, "surface", functools.partial(random_pattern, pattern=pattern)
  )
  for name, pattern in PATTERNS.items()
}
CATEGORIES |= {
  shape.__name__: generated.Category(
    shape.__name__, "object", functools.partial(_random_object, shape=shape)
  )
  for shape in SHAPES
}
