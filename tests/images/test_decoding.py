"""Reading images in every encoding from files, bytes and arrays."""

import io
import os
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from cops_jax.errors import InputError
from cops_jax.images import finding, read
from cops_jax.images.masks import read_mask
from helpers.images import encode


def noise_image(mode, size=(23, 17)):
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
  return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize(
  "mode, format",
  (
    *((mode, "PNG") for mode in ("RGB", "L", "LA", "RGBA", "P", "1")),
    *(("RGB", "JPEG"), ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("RGB", "WEBP")),
  ),
)
def test_files_of_8_bits_are_resized_in_their_own_mode(mode, format):
  """The authors' code does the same with upright and opaque images."""
  data = encode(noise_image(mode), format)
  with Image.open(io.BytesIO(data)) as image:
    assert image.mode == mode
    want = image.resize((16, 16), Image.Resampling.BICUBIC).convert("RGB")
    whole = np.asarray(image.convert("RGB"))
  found = read(data)
  np.testing.assert_array_equal(found.resize(16), want)
  np.testing.assert_array_equal(found.pixels, whole)
  assert found.notes == () and found.size == (23, 17)


def test_large_photographs_are_decoded_at_full_size(tmp_path):
  """A JPEG could be decoded at an eighth of its size, with different pixels."""
  path = tmp_path / "photograph.jpg"
  noise_image("RGB", (640, 480)).save(path, quality=95)
  with Image.open(path) as image:
    want = np.asarray(image)
  for image in (path, str(path), path.read_bytes(), want):
    np.testing.assert_array_equal(read(image).pixels, want)


def chunk(kind, content):
  """Returns a part of a PNG file."""
  checksum = zlib.crc32(kind + content)
  length = struct.pack(">I", len(content))
  return length + kind + content + struct.pack(">I", checksum)


def with_chunk(data, kind, content):
  """Returns a PNG with a chunk after its header."""
  return data[:33] + chunk(kind, content) + data[33:]


def packed_tiff(values):
  """Returns a TIFF whose grey pixels have 12 bits."""
  height, width = values.shape
  high, low = values[:, 0::2].astype(int), values[:, 1::2].astype(int)
  strip = np.stack([high >> 4, (high & 15) << 4 | low >> 8, low & 255], axis=-1)
  strip = strip.astype(np.uint8).tobytes()
  tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 277: 1, 278: height}
  tags |= {273: 8 + 2 + 12 * 9 + 4, 279: len(strip)}
  content = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
  for tag in sorted(tags):
    content += struct.pack("<HHII", tag, 4, 1, tags[tag])
  return content + bytes(4) + strip


def ramp(bits, dtype=np.uint16):
  """Returns values of a given number of bits, including the highest."""
  values = np.linspace(0, 2**bits - 1, 16 * 24).round()
  return values.reshape(16, 24).astype(dtype)


@pytest.mark.parametrize("bits", (10, 12, 16))
@pytest.mark.parametrize(
  "make",
  (
    lambda values, bits: dict(image=encode(values)),
    lambda values, bits: dict(image=encode(values, "TIFF")),
    lambda values, bits: dict(image=values),
    lambda values, bits: dict(
      image=encode(
        Image.frombytes("I;16B", (24, 16), values.astype(">u2").tobytes()),
        "TIFF",
      )
    ),
    lambda values, bits: dict(
      image=with_chunk(encode(values), b"sBIT", bytes([bits])),
      bits_per_channel=9,
    ),
    lambda values, bits: dict(
      image=with_chunk(encode(values << (16 - bits)), b"sBIT", bytes([bits]))
    ),
  ),
  ids=("PNG", "TIFF", "array", "big-endian", "sBIT", "sBIT, scaled"),
)
def test_deep_grey_is_divided_by_the_range_of_its_bits(make, bits):
  values = ramp(bits)
  arguments = {"bits_per_channel": bits, **make(values, bits)}
  found = read(**arguments)
  np.testing.assert_array_equal(found.pixels[..., 0], values >> (bits - 8))
  assert found.pixels.min() == 0 and found.pixels.max() == 255
  assert found.notes == ()
  # Pixels do not depend on the highest value of the image.
  darker = read(**arguments | make(values // 4, bits))
  np.testing.assert_array_equal(darker.pixels[..., 0], values // 4 >> bits - 8)


def test_a_tiff_declares_its_12_bits():
  found = read(packed_tiff(ramp(12)))
  np.testing.assert_array_equal(found.pixels[..., 0], ramp(12) >> 4)
  assert found.notes == ()


def test_a_tiff_can_store_white_as_zero():
  """PIL inverts such a TIFF only if it has 8 bits."""
  got = read(encode(ramp(16), "TIFF", tiffinfo={262: 0})).pixels[..., 0]
  np.testing.assert_array_equal(got, 255 - (ramp(16) >> 8))


def test_32_bit_integers_need_bits_per_channel():
  data = encode(ramp(12, np.int32), "TIFF")
  with pytest.raises(InputError, match="32-bit integers.*bits_per_channel"):
    read(data)
  got = read(data, bits_per_channel=12).pixels[..., 0]
  np.testing.assert_array_equal(got, ramp(12) >> 4)


@pytest.mark.parametrize(
  "values, bits, expected",
  (
    (ramp(12, np.float32), 12, "floating-point numbers.* Save it with 8 or 16"),
    (ramp(12) + 1, 12, "values, from 1 to 4096, do not fit in 12 bits"),
    (-ramp(12, np.int32), 12, "values, from -4095 to 0, do not fit in 12 bits"),
  ),
)
def test_values_outside_the_range_are_refused(values, bits, expected):
  with pytest.raises(InputError, match=expected):
    read(encode(values, "TIFF"), bits_per_channel=bits)


def deep_colors(values):
  """Returns a PNG with 16 bits in each of three channels."""
  rows = np.repeat(values[..., None], 3, axis=-1).astype(">u2")
  lines = b"".join(b"\0" + row.tobytes() for row in rows)
  header = struct.pack(">IIBBBBB", *values.shape[::-1], 16, 2, 0, 0, 0)
  parts = {b"IHDR": header, b"IDAT": zlib.compress(lines), b"IEND": b""}
  return b"\x89PNG\r\n\x1a\n" + b"".join(map(chunk, parts, parts.values()))


def test_deep_colors_are_read_from_their_high_bytes():
  found = read(deep_colors(ramp(16)))
  np.testing.assert_array_equal(found.pixels[..., 1], ramp(16) >> 8)
  assert found.notes == ()
  assert read(deep_colors(ramp(12))).notes[0].endswith(": 12 bits")
  with pytest.raises(
    InputError, match="12 bits stored in 16.*Save it with 8 bits"
  ):
    read(deep_colors(ramp(12)), bits_per_channel=12)


@pytest.mark.parametrize("bits", (12, 15))
def test_values_that_use_fewer_bits_are_noted(bits):
  data = encode(ramp(bits))
  (note,) = read(data).notes
  assert note.startswith("the values use fewer than 16 bits")
  assert "bits_per_channel" in note and note.endswith(f": {bits} bits")
  assert read(encode(ramp(bits) * 0)).notes == ()


@pytest.mark.parametrize("mode", ("LA", "RGBA", "P", "L", "RGB", "I;16"))
def test_transparent_images_are_blended_with_white(mode):
  """LA and RGBA have half-transparent pixels; L, RGB and I;16 a colour key."""
  image, options = Image.new("RGBA", (20, 10), (0, 100, 0, 255)), {}
  image.paste((200, 0, 0, 0), (0, 0, 10, 5))
  if mode in ("LA", "RGBA"):
    image.paste((0, 100, 0, 128), (0, 5, 10, 10))
    image = image.convert(mode)
  elif mode == "P":
    image = image.quantize(8)
  elif mode == "I;16":
    grey = np.where(np.asarray(image)[..., 3] > 0, 80 << 8, 7).astype(np.uint16)
    data = with_chunk(encode(grey), b"tRNS", b"\0\7")
  else:
    image = image.convert(mode)
    options = dict(transparency=image.getpixel((0, 0)))
  if mode != "I;16":
    data = encode(image, **options)
  pixels = read(data).pixels
  assert (pixels[:5, :10] == 255).all()
  opaque = 80 if mode == "I;16" else 59 if mode in ("LA", "L") else (0, 100, 0)
  np.testing.assert_allclose(pixels[:, 10:], opaque + np.zeros((10, 10, 3)))
  if mode in ("LA", "RGBA"):
    mixed = np.add(opaque, 255) / 2 + np.zeros((5, 10, 3))
    np.testing.assert_allclose(pixels[5:, :10], mixed, atol=1)


@pytest.mark.parametrize(
  "mode, color, want",
  (
    ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
    ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
    ("1", 1, (255, 255, 255)),
  ),
)
def test_other_colour_modes_are_converted(mode, color, want):
  pixels = read(encode(Image.new(mode, (4, 4), color), "TIFF")).pixels
  assert (pixels == want).all()


@pytest.mark.parametrize("format", ("TIFF", "PNG", "WEBP"))
def test_the_first_of_several_pages_is_read(format):
  first, *others = (Image.new("L", (8, 8), 60 * index) for index in range(3))
  options = {} if format == "TIFF" else dict(duration=100)
  options |= dict(lossless=True) if format == "WEBP" else {}
  data = encode(first, format, save_all=True, append_images=others, **options)
  found = read(data)
  assert not found.pixels.any()
  assert found.notes == (
    "only the first of several pages or frames is used: 3",
  )


# The operation that stores an image with an EXIF orientation.
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
@pytest.mark.parametrize(
  "format, mode", (("PNG", "RGB"), ("TIFF", "RGB"), ("TIFF", "L"))
)
def test_photographs_are_turned_upright(orientation, format, mode, tmp_path):
  upright = stored = noise_image(mode)
  if STORED[orientation] is not None:
    stored = upright.transpose(STORED[orientation])
  exif = Image.Exif()
  exif[0x112] = orientation
  path = tmp_path / "photograph"
  path.write_bytes(encode(stored, format, exif=exif))
  for file in (path, path.read_bytes()):
    found = read(file)
    np.testing.assert_array_equal(found.pixels, upright.convert("RGB"))
    assert found.orientation == orientation


def test_an_image_with_damaged_exif_data_is_not_rotated():
  data = encode(noise_image("RGB"), exif=b"Exif\0\0damaged")
  np.testing.assert_array_equal(read(data).pixels, noise_image("RGB"))


def test_heic_needs_its_extra(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "pillow_heif", None)
  path = tmp_path / "a.HEIC"
  path.write_bytes(b"\0\0\0\x1cftypheic")
  expected = r'a.HEIC cannot be read: .* pip install "cops-jax\[heic\]"'
  with pytest.raises(InputError, match=expected):
    read(path)
  monkeypatch.setattr(finding, "IMAGE_SUFFIXES", (".png",))
  with pytest.raises(InputError, match="skipped: 1 .heic; to read HEIC, run"):
    finding.find_images([str(tmp_path)])


def test_heic_photographs_are_read(tmp_path):
  """The container rotates HEIC; grey of 10 bits is read for any setting."""
  pillow_heif = pytest.importorskip("pillow_heif")
  pillow_heif.register_heif_opener()
  upright = noise_image("RGB", (70, 40)).resize((140, 80))
  exif = Image.Exif()
  exif[0x112] = 6
  path = tmp_path / "a.HEIC"
  lossless = dict(quality=-1, chroma=444, matrix_coefficients=0)
  lying = upright.transpose(Image.Transpose.ROTATE_90)
  lying.save(path, "HEIF", exif=exif.tobytes(), **lossless)
  assert finding.find_images([str(tmp_path)]) == [path]
  for file in (path, path.read_bytes()):
    found = read(file)
    assert found.size == upright.size and found.stored_as == "HEIF RGB"
    np.testing.assert_array_equal(found.pixels, upright)
  with pytest.raises(InputError, match="more than 0.01 million pixels"):
    read(path, max_pixels=10_000)
  with pytest.raises(InputError, match="a.HEIC cannot be read"):
    path.write_bytes(path.read_bytes()[:-200])
    read(path)

  values = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) % 1024
  grey = pillow_heif.from_bytes("I;16", (64, 64), (values << 6).tobytes())
  grey.save(tmp_path / "b.heic", quality=-1)
  for bits in (16, 12):
    found = read(tmp_path / "b.heic", bits_per_channel=bits)
    np.testing.assert_array_equal(found.pixels[..., 0], values >> 2)
    assert not found.notes


def test_a_damaged_png_is_refused():
  """PIL would return the intact part of it at the second attempt."""
  content = encode(noise_image("RGB", (40, 40)))
  rng = np.random.default_rng(1)
  for _ in range(20):
    damaged = bytearray(content)
    damaged[rng.integers(60, len(content) - 20)] ^= 1 << rng.integers(8)
    expected = "(?i)image cannot be read: .*(broken|error|truncated|stream)"
    with pytest.raises(InputError, match=expected):
      read(bytes(damaged))


def test_other_files_are_refused(tmp_path):
  path = tmp_path / "x.png"
  os.mkfifo(path)  # Reading it would block.
  with pytest.raises(InputError, match="x.png cannot be read: it is not a reg"):
    read(path)
  assert finding.find_images([str(tmp_path)]) == [path]
  path.unlink()
  postscript = encode(Image.new("RGB", (8, 8)), "EPS")
  for content, expected in (
    (b"text", "it is not a valid image file .PNG"),
    (postscript, "image file .PNG, JPEG"),
    (b"", "it is empty"),
  ):
    path.write_bytes(content)
    for file in (content, path):
      for decode in (read, read_mask):
        with pytest.raises(ValueError, match=expected):
          decode(file)


@pytest.mark.parametrize(
  "array",
  (
    np.zeros((4, 4), np.float32),
    np.zeros((4, 4, 3), np.uint16),
    np.zeros((4, 4, 2), np.uint8),
    np.zeros((0, 4), np.uint8),
  ),
)
def test_other_arrays_are_refused(array):
  with pytest.raises(InputError, match=r"expected uint8 .*, not .*\(.*4"):
    read(array)


def test_images_of_too_many_pixels_are_refused(tmp_path):
  path = tmp_path / "large.png"
  Image.new("1", (300, 200)).save(path)
  assert read(path, max_pixels=60_000).size == (300, 200)
  with pytest.raises(InputError, match="more than 0.05 million pixels"):
    read(path, max_pixels=50_000)
  with pytest.raises(ValueError):
    read_mask(path, 50_000)
  Image.new("1", (20_000, 10_000)).save(path)
  with pytest.raises(InputError, match="80 million"):
    read(path)


def test_broken_links_are_found_and_linked_folders_are_not_followed(
  tmp_path, monkeypatch
):
  """Broken links are reported later as unreadable images."""
  (tmp_path / "loop.png").symlink_to("loop.png")
  (tmp_path / "gone.png").symlink_to("nowhere")
  (tmp_path / "folder").symlink_to(tmp_path)
  found = finding.find_images([str(tmp_path)])
  assert found == [tmp_path / "gone.png", tmp_path / "loop.png"]

  def scandir(path):
    raise PermissionError(13, "Permission denied", str(path))

  monkeypatch.setattr(os, "scandir", scandir)
  with pytest.raises(InputError, match="cannot be read: .*Permission denied"):
    finding.find_images([str(tmp_path)])
