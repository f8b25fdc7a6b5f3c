"""Decoding bit for bit as PIL does it, called directly."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from cops_jax.errors import InputError
from cops_jax.images import decoding
from cops_jax.images.masks import decode_mask


def encode(image, format="PNG"):
  file = io.BytesIO()
  image.save(file, format)
  return file.getvalue()


def noise_image(mode, size=(23, 17)):
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
  return Image.fromarray(pixels).convert(mode)


MODES = {
  **dict.fromkeys(("RGB", "L", "LA", "RGBA", "P", "1"), ("PNG", "TIFF")),
  "CMYK": ("JPEG", "TIFF"),
  "I;16": ("PNG", "TIFF"),
  "F": ("TIFF",),
}


@pytest.mark.parametrize(
  "mode, format", [(mode, name) for mode in MODES for name in MODES[mode]]
)
def test_images_are_resized_in_their_own_mode(mode, format):
  if mode in ("I;16", "F"):
    values = np.random.default_rng(0).integers(0, 600, (17, 23))
    dtype = np.uint16 if mode == "I;16" else np.float32
    data = encode(Image.fromarray(values.astype(dtype)), format)
  else:
    data = encode(noise_image(mode), format)
  actual = decoding.decode_image(data, 16)
  image = Image.open(io.BytesIO(data))
  assert image.mode == mode
  want = image.resize((16, 16), Image.Resampling.BICUBIC).convert("RGB")
  np.testing.assert_array_equal(actual, np.asarray(want))


def test_large_photographs_are_decoded_at_full_size(tmp_path):
  """JPEG can be decoded at an eighth of its size, with other pixels."""
  path = tmp_path / "photograph.jpg"
  noise_image("RGB", (640, 480)).save(path, quality=95)
  with Image.open(path) as image:
    want = image.resize((16, 16), Image.Resampling.BICUBIC)
  for file in (path, path.read_bytes()):
    np.testing.assert_array_equal(decoding.decode_image(file, 16), want)
    with decoding.open_image(file) as opened:
      assert opened.size == (640, 480)
      np.testing.assert_array_equal(decoding.resize_image(opened, 16), want)


@pytest.mark.parametrize("dtype", ("<u2", ">u2"))
@pytest.mark.parametrize("format", ("PNG", "TIFF"))
def test_sixteen_bits_are_read_by_their_high_byte(dtype, format):
  values = np.random.default_rng(0).integers(0, 2**16, (17, 23)).astype(dtype)
  file = io.BytesIO()
  mode = "I;16B" if dtype == ">u2" else "I;16"
  Image.frombytes(mode, (23, 17), values.tobytes()).save(file, format)
  with Image.open(file) as image:
    seen = decoding.as_seen(image)
    assert seen.mode == "L"
    np.testing.assert_array_equal(np.asarray(seen), values >> 8)


def test_pixels_without_a_range_are_refused():
  for dtype in (np.int32, np.float32):
    image = Image.fromarray(np.ones((4, 4), dtype))
    with pytest.raises(ValueError, match="mode .; expected 8 or 16 bits"):
      decoding.as_seen(image)


@pytest.mark.parametrize("mode", ("LA", "RGBA", "P"))
def test_transparent_images_are_laid_on_white(mode):
  image = noise_image("RGB").convert("LA" if mode == "LA" else "RGBA")
  alpha = Image.new("L", image.size, 255)
  alpha.paste(0, (0, 0, 10, 17))
  image.putalpha(alpha)
  if mode == "P":
    file = io.BytesIO()
    image.quantize(200).save(file, "PNG")
    image = Image.open(file)
    assert image.mode == "P"
  assert decoding.is_transparent(image)
  seen = decoding.as_seen(image)
  assert seen.mode == "RGB"
  got = np.asarray(seen)
  assert (got[:, :10] == 255).all()
  want = np.asarray(image.convert("RGBA").convert("RGB"))
  np.testing.assert_array_equal(got[:, 10:], want[:, 10:])


# How a file is stored that is to be turned by the orientation's number.
STORED = {
  1: None,
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_90,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", STORED)
def test_photographs_are_turned_upright(orientation):
  upright = stored = noise_image("RGB")
  if STORED[orientation] is not None:
    stored = upright.transpose(STORED[orientation])
  exif = Image.Exif()
  exif[0x112] = orientation
  file = io.BytesIO()
  stored.save(file, "PNG", exif=exif)
  with Image.open(file) as image:
    turned = decoding.turn_upright(image)
    np.testing.assert_array_equal(np.asarray(turned), np.asarray(upright))


def test_an_image_with_damaged_exif_data_is_left_as_it_is():
  file = io.BytesIO()
  noise_image("RGB").save(file, "PNG", exif=b"Exif\0\0damaged")
  with Image.open(file) as image:
    assert decoding.turn_upright(image) is image


def test_a_damaged_png_is_refused():
  """One flipped bit; PIL returns the rest at the second attempt."""
  content = encode(noise_image("RGB", (40, 40)))
  rng = np.random.default_rng(1)
  for _ in range(20):
    damaged = bytearray(content)
    damaged[rng.integers(60, len(content) - 20)] ^= 1 << rng.integers(8)
    with pytest.raises(Exception, match="(?i)broken|error|truncated|stream"):
      with decoding.open_image(bytes(damaged)) as opened:
        decoding.as_seen(opened)


def test_other_files_are_refused(tmp_path):
  path = tmp_path / "x.png"
  os.mkfifo(path)  # Reading it would wait.
  with pytest.raises(ValueError, match="not a regular file"):
    decoding.decode_image(path, 8)
  assert decoding.find_images([str(tmp_path)]) == [path]
  path.unlink()
  postscript = encode(Image.new("RGB", (8, 8)), "EPS")
  for content, expected in (
    (b"text", "it is not an image in one of PNG"),
    (postscript, "in one of PNG, JPEG"),
    (b"", "it is empty"),
  ):
    path.write_bytes(content)
    for file in (content, path):
      for decode in (decoding.decode_image, decode_mask):
        with pytest.raises(ValueError, match=expected):
          decode(file, 8)


def test_images_of_too_many_pixels_are_refused(tmp_path):
  path = tmp_path / "large.png"
  Image.new("1", (300, 200)).save(path)
  assert decoding.decode_image(path, 8, max_pixels=60_000).shape == (8, 8, 3)
  with pytest.raises(ValueError, match="more than 0.05 million pixels"):
    decoding.decode_image(path, 8, max_pixels=50_000)
  with pytest.raises(ValueError):
    decode_mask(path, 8, max_pixels=50_000)
  Image.new("1", (20_000, 10_000)).save(path)
  with pytest.raises(ValueError, match="80 million"):
    decoding.decode_image(path, 8)


def test_finding_images(tmp_path, monkeypatch):
  """Broken links are images that cannot be read; folders' are not followed."""
  (tmp_path / "loop.png").symlink_to("loop.png")
  (tmp_path / "gone.png").symlink_to("nowhere")
  (tmp_path / "folder").symlink_to(tmp_path)
  found = decoding.find_images([str(tmp_path)])
  assert found == [tmp_path / "gone.png", tmp_path / "loop.png"]

  def scandir(path):
    raise PermissionError(13, "Permission denied", str(path))

  monkeypatch.setattr(os, "scandir", scandir)
  with pytest.raises(InputError, match="cannot be read: .*Permission denied"):
    decoding.find_images([str(tmp_path)])
