"""Texts that describe images and patches."""

from __future__ import annotations

import numpy as np

from cops_jax.datasets import generated
from tools.pretrain_demo_clip.categories import CATEGORIES

KINDS = tuple(generated.SEEN_DEFECTS)
GOOD = ("flawless", "perfect", "intact", "normal", "undamaged", "clean")
BAD = ("damaged", "defective", "broken", "anomalous", "flawed", "faulty")
# Red, green and blue in [0, 1] of each colour's word.
COLORS = {
  "red": (0.75, 0.2, 0.2),
  "orange": (0.85, 0.5, 0.2),
  "yellow": (0.85, 0.8, 0.3),
  "green": (0.3, 0.65, 0.3),
  "cyan": (0.3, 0.7, 0.7),
  "blue": (0.25, 0.35, 0.75),
  "purple": (0.55, 0.3, 0.65),
  "pink": (0.85, 0.5, 0.65),
  "brown": (0.45, 0.3, 0.2),
  "grey": (0.5, 0.5, 0.5),
  "black": (0.1, 0.1, 0.1),
  "white": (0.9, 0.9, 0.9),
}
# Texts about attributes make a patch's features describe more than its state.
ATTRIBUTES = (
  tuple(COLORS),
  ("dark", "dim", "light", "bright"),
  ("plain", "textured", "contrasty"),
  ("upper left", "upper middle", "upper right")
  + ("middle left", "middle", "middle right")
  + ("lower left", "lower middle", "lower right"),
)
TEMPLATES = (
  "a photo of a {} {} .",
  "a close-up photo of the {} {} .",
  "a {} {} .",
  "an image of a {} {} .",
)


def words(name: str) -> str:
  """Returns the name of a category or a kind of defect as words."""
  return name.replace("_", " ")


def vocabulary() -> list[str]:
  """Returns texts that contain every word of the captions."""
  texts = ["object . with without the an image close-up", *TEMPLATES]
  texts += [*GOOD, *BAD, *map(words, KINDS)]
  texts += map(words, CATEGORIES)
  texts += ["region", *(word for group in ATTRIBUTES for word in group)]
  return [text.replace("{}", "") for text in texts]


def draw_caption(
  rng: np.random.Generator, category: str, is_bad: bool, kind: int
) -> str:
  """Returns a random caption of an image.

  `is_bad` is True if a defect is visible, and `kind` is its index in `KINDS`.
  """
  if is_bad and rng.random() < 0.6:
    text = f"{words(category)} with a {words(KINDS[kind])}"
    return rng.choice(TEMPLATES).format("", text)
  return rng.choice(TEMPLATES).format(
    rng.choice(BAD if is_bad else GOOD), words(category)
  )


def draw_state_texts(rng: np.random.Generator) -> list[str]:
  """Returns texts of good and bad, then of good and each kind of defect."""
  template = rng.choice(TEMPLATES)
  return [
    template.format(rng.choice(GOOD), "object"),
    template.format(rng.choice(BAD), "object"),
    template.format(rng.choice(GOOD), "object"),
    *(template.format("", f"object with a {words(k)}") for k in KINDS),
  ]


def attribute_texts() -> list[str]:
  """Returns a text for each word of `ATTRIBUTES`, group by group."""
  return [f"a {word} region ." for group in ATTRIBUTES for word in group]
