"""Masks of any file format are read as two values."""

import io

import numpy as np
import pytest
from PIL import Image

from cops_jax.images.masks import (
  CUT,
  EMPTY,
  FULL,
  OTHER_SIZE,
  UPRIGHT,
  VANISHED,
  example_mask,
  read_mask,
)
from helpers.images import encode

DRAWN = np.zeros((40, 50), bool)
DRAWN[10:20, 5:21] = True  # 8.0% of all pixels.


def colored(background, anomaly):
  """Returns the drawn mask in two grey values or colours."""
  return np.where(
    DRAWN.reshape(40, 50, *[1] * np.ndim(anomaly)),
    np.uint8(anomaly),
    np.uint8(background),
  )


def palette(*colors, anomaly=1):
  image = Image.fromarray(colored(1 - anomaly, anomaly))
  image.putpalette(sum(colors, ()))
  return image


def three_colors():
  image = palette((9, 9, 9), (80, 0, 0), (0, 80, 0))
  image.putpixel((0, 0), 2)
  return image


def photograph():
  rng = np.random.default_rng(0)
  return rng.normal(128, 20, (40, 50, 3)).astype(np.uint8)


def cut_out(colors):
  alpha = 255 * DRAWN.astype(np.uint8)
  return np.dstack([colors, alpha])


def classes(low, high):
  values = colored(0, low)
  values[10:20, 5:8] = high
  return values


TWO_VALUES = {
  "grey": colored(0, 255),
  "dark": colored(0, 1),
  "LOCO": colored(0, 237),
  "16 bits": colored(0, 1).astype(np.uint16) * 700,
  "probability": DRAWN.astype(np.float32) * 0.3,
  "integers": DRAWN.astype(np.int32) * 2**20,
  "bits": Image.fromarray(DRAWN),
  "VisA": classes(2, 3),
  "classes": classes(100, 255),
  "no black": colored(10, 200),
  "RGB": colored((0, 0, 0), (255, 255, 255)),
  "red": colored((0, 0, 0), (255, 0, 0)),
  "dark blue": colored((0, 0, 0), (0, 0, 1)),
  "on green": colored((0, 40, 0), (255, 40, 0)),
  "RGBA": cut_out(colored((0, 0, 0), (255, 255, 255))),
  "opaque": Image.fromarray(colored((0, 0, 0), (9, 9, 9))).convert("RGBA"),
  "alpha on white": cut_out(np.full((40, 50, 3), 255, np.uint8)),
  "alpha on black": cut_out(np.zeros((40, 50, 3), np.uint8)),
  "alpha on a photograph": cut_out(photograph()),
  "LA": Image.fromarray(cut_out(np.full((40, 50), 255, np.uint8))),
  "palette": palette((0, 0, 0), (255, 255, 255)),
  "black last": palette((255, 255, 255), (0, 0, 0), anomaly=0),
  "dark palette": palette((0, 0, 0), (0, 0, 1)),
  "black palette": palette((0, 0, 0), (0, 0, 0)),
  "palette on colour": palette((80, 0, 200), (0, 90, 0)),
}


@pytest.mark.parametrize("name", TWO_VALUES)
def test_masks_of_two_values_are_read_exactly(name):
  pixels, notes = read_mask(encode(TWO_VALUES[name], "TIFF"))
  np.testing.assert_array_equal(pixels, DRAWN)
  assert notes == ()


def test_cmyk_masks_are_read():
  image = Image.fromarray(colored((0, 0, 0), (255, 255, 255))).convert("CMYK")
  np.testing.assert_array_equal(read_mask(encode(image, "TIFF"))[0], DRAWN)


@pytest.mark.parametrize("value, expected", ((0, False), (1, True)))
@pytest.mark.parametrize("mode", ("L", "P", "RGB"))
def test_a_mask_of_one_value_is_empty_or_full(value, expected, mode):
  image = Image.fromarray(np.full((4, 5), value, np.uint8)).convert(mode)
  assert (read_mask(encode(image)).pixels == expected).all()


def soft():
  large = Image.fromarray(np.kron(colored(0, 255), np.ones((4, 4), np.uint8)))
  return large.rotate(0.5, Image.Resampling.BICUBIC).resize((50, 40))


JPEG = encode(colored(0, 255), "JPEG", quality=75)
BETWEEN = {
  "JPEG": JPEG,
  "RGB JPEG": encode(colored((0, 0, 0), (255, 255, 255)), "JPEG", quality=75),
  "once a JPEG": encode(Image.open(io.BytesIO(JPEG))),
  "soft": encode(soft()),
  "probability": encode(np.float32(soft()) / 255, "TIFF"),
  "WebP": encode(colored((0, 0, 0), (255, 255, 255)), "WEBP", quality=50),
  "soft alpha": encode(np.dstack([np.full((40, 50), 255, np.uint8), soft()])),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_intermediate_values_are_split_at_the_middle(name):
  pixels, notes = read_mask(BETWEEN[name])
  assert [note.partition(": ")[0] for note in notes] == [CUT]
  np.testing.assert_array_equal(pixels, DRAWN)


@pytest.mark.parametrize(
  "image, expected",
  (
    (colored((0, 0, 255), (255, 0, 0)), r"\(0, 0, 255\).*\(255, 0, 0\)"),
    (three_colors(), r"\(0, 80, 0\), \(80, 0, 0\), \(9, 9, 9\)"),
    (photograph(), "more than 16 colours"),
    (photograph()[..., 0], "most of its values are between"),
    (classes(2, 3) + 1, "the values 1, 3, 4, but no 0"),
    (np.float32([[np.nan, 1]]), "from nan"),
    (np.int32([[-1, 1]]), "from -1 to 1"),
  ),
)
def test_images_that_are_not_masks_are_refused(image, expected):
  with pytest.raises(ValueError, match=f"it is not a mask: .*{expected}"):
    read_mask(encode(image, "TIFF"))


def test_several_masks_of_an_image_are_united(tmp_path):
  path = tmp_path / "0.png"
  path.write_bytes(encode(colored(0, 237)))
  other = np.zeros((40, 50), np.uint8)
  other[30:, 40:] = 5
  pixels, _ = read_mask([path, encode(other)])
  np.testing.assert_array_equal(pixels, DRAWN | (other > 0))
  with pytest.raises(ValueError, match="differ in size: 50 x 40, 40 x 50"):
    read_mask([path, encode(other.T)])


def read_example(mask, side=20, orientation=1, size=(50, 40), label=1):
  example = {"label": label, "has_mask": True, "mask": encode(mask)}
  return example_mask(example, orientation, size, {}).fit(side)


def test_masks_are_binary_before_and_after_resizing():
  mask, notes = read_example(colored(0, 1))
  resized = (
    Image.fromarray(DRAWN)
    .convert("L")
    .resize((20, 20), Image.Resampling.BILINEAR)
  )
  np.testing.assert_array_equal(mask, np.asarray(resized) >= 128)
  assert 0 < mask.sum() < mask.size and mask.dtype == np.uint8
  assert notes == ()


@pytest.mark.parametrize(
  "orientation, turns", ((1, 0), (3, 2), (6, -1), (8, 1))
)
@pytest.mark.parametrize("scale", (1, 2))
def test_masks_are_rotated_with_their_images(orientation, turns, scale):
  upright = np.rot90(DRAWN, turns)
  size = upright.shape[::-1]
  want, _ = read_example(upright)
  form = {"orientation": orientation, "size": size}
  stored = np.kron(DRAWN, np.ones((scale, scale), bool))
  mask, notes = read_example(stored, **form)
  np.testing.assert_array_equal(mask, want)
  other_size = f"{OTHER_SIZE}: 100 x 80 pixels, not {size[0]} x {size[1]}"
  assert notes == ((other_size,) if scale == 2 else ())
  if orientation > 4:
    mask, notes = read_example(upright, **form)
    np.testing.assert_array_equal(mask, want)
    assert notes == (f"{UPRIGHT}: {size[0]} x {size[1]} pixels",)


def test_unusual_masks_are_noted():
  small = np.zeros((2000, 2000), bool)
  small[100:103, 7] = True
  for mask, note in (
    (small, f"{VANISHED.format(20, 20)}: 3 of 2000 x 2000 pixels"),
    (np.ones((40, 50), bool), f"{FULL}: 50 x 40 pixels"),
    (np.zeros((40, 50), bool), f"{EMPTY}: 50 x 40 pixels"),
  ):
    found, notes = read_example(mask, size=mask.shape[::-1])
    assert notes == (note,)
    assert (found == note.startswith(FULL)).all()
  assert read_example(DRAWN, label=0).pixels.max() == 0
