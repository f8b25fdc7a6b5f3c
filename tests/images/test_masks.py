"""Masks are read as two values, whatever their files' form is."""

import io

import numpy as np
import pytest
from PIL import Image

from cops_jax.images.masks import decode_mask


def encode(image, format="PNG"):
  file = io.BytesIO()
  image.save(file, format)
  return file.getvalue()


@pytest.mark.parametrize("mode", ("L", "1", "P", "RGB", "RGBA", "I;16"))
def test_masks_of_any_mode(mode):
  values = np.zeros((16, 16), np.uint16 if mode == "I;16" else np.uint8)
  values[4:12, 2:9] = 700 if mode == "I;16" else 255
  mask = Image.fromarray(values)
  data = encode(mask if mode == "I;16" else mask.convert(mode))
  np.testing.assert_array_equal(decode_mask(data, 16), values > 0)


def test_masks_are_binary_before_and_after_resizing():
  values = np.zeros((20, 30), np.uint8)
  values[5:12, 8:20] = 1  # As dark as a mask can be.
  actual = decode_mask(encode(Image.fromarray(values)), 16)
  full = Image.fromarray(values * 255).resize(
    (16, 16), Image.Resampling.BILINEAR
  )
  np.testing.assert_array_equal(actual, np.asarray(full) >= 128)
  assert 0 < actual.sum() < actual.size
