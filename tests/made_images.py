"""Images of random colours, of any size and mode."""

import numpy as np
from PIL import Image


def make_image(seed, width=70, height=40, mode="RGB"):
  rng = np.random.default_rng(seed)
  pixels = rng.integers(0, 256, (5, 7, 3), np.uint8)
  return Image.fromarray(pixels).resize((width, height)).convert(mode)
