"""Weight files of every format, whole and damaged.

The fuzzer damages files of every format and lets the reader loose on them: some
hundred here, ten thousand in `make soak`.
"""

import hashlib
import io
import json
import struct
import tracemalloc
import zipfile

import flax.serialization
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from cops_jax.errors import InputError
from cops_jax.weights.tensor_files import check_tensors, read_tensor_file
from helpers import weight_files

SEEDS = {
  name: (weight_files.DATA / name).read_bytes() for name in weight_files.FILES
}
TENSORS = {
  "a.b": np.array([[1, 2], [3, 4]], ml_dtypes.bfloat16),
  "a.c": np.array(2.5, np.float16),
  "d": np.arange(3),
}


def test_safetensors(tmp_path):
  path = tmp_path / "file"
  save_file(TENSORS, path, {"record": "a record"})
  file = read_tensor_file(path)
  assert file.format == "safetensors" and file.record == "a record"
  assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
  assert file.tensors.keys() == TENSORS.keys()
  for name, array in TENSORS.items():
    np.testing.assert_array_equal(file.tensors[name], array, strict=True)


@pytest.mark.parametrize("beginning", (b"\x80", b"\x88"))
def test_safetensors_whose_length_looks_like_another_format(
  tmp_path, beginning
):
  """It begins with the header's length; that may be any multiple of 8."""
  path = tmp_path / "x.safetensors"
  tensors = {"a": np.arange(3, dtype=np.float32)}
  for size in range(0, 256, 8):
    content = save(tensors, {"record": "x" * size})
    if content.startswith(beginning):
      break
  assert content.startswith(beginning)
  path.write_bytes(content)
  file = read_tensor_file(path)
  assert file.format == "safetensors" and file.record == "x" * size
  np.testing.assert_array_equal(file.tensors["a"], tensors["a"])


def test_flax_msgpack(tmp_path):
  path = tmp_path / "file"
  tree = {"a": {"b": TENSORS["a.b"], "c": TENSORS["a.c"]}, "d": TENSORS["d"]}
  path.write_bytes(flax.serialization.msgpack_serialize(tree))
  file = read_tensor_file(path)
  assert file.format == "flax msgpack" and file.record == ""
  for name, array in TENSORS.items():
    np.testing.assert_array_equal(file.tensors[name], array, strict=True)


def test_a_hash_is_checked_before_the_file_is_read(tmp_path):
  path = tmp_path / "file"
  path.write_bytes(b"of no format")
  actual = hashlib.sha256(b"of no format").hexdigest()
  with pytest.raises(InputError, match=f"has the SHA-256 {actual}; .* 00ff"):
    read_tensor_file(path, "00ff")
  with pytest.raises(InputError, match="neither safetensors nor"):
    read_tensor_file(path, actual.upper())


def safetensors_header(header):
  content = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack("<Q", len(content)) + content


def ext(code, content):
  return b"\x81\xa1a\xc9" + struct.pack(">IB", len(content), code) + content


def flax_array(shape, dtype, size):
  import msgpack

  return ext(1, msgpack.packb((shape, dtype, bytes(size))))


@pytest.mark.parametrize(
  "content, expected",
  (
    (b"", "cut off or of another format"),
    (b"<!DOCTYPE html>", "cut off or of another format"),
    (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    (struct.pack("<Q", 2**60) + b"{", "not a whole safetensors file"),
    (safetensors_header(b"{" * 9), "not a whole safetensors file"),
    (
      safetensors_header(
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
      ),
      "not a whole safetensors file",
    ),
    (
      safetensors_header(
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}
      )
      + bytes(4),
      "not a whole safetensors file",
    ),
    (save(TENSORS)[:-1], "not a whole safetensors file"),
    # Lists within lists, each of which would be allocated before it is read.
    (b"\x81\xa1a" + b"\xdd\0\x10\0\0" * 300, r"1048576 exceeds max_array_len"),
    (b"\x81\xa1a" * 2000, "not a whole file of flax parameters"),
    (b"\x81\xa1a\xc1", "not a whole file of flax parameters"),
    (b"\xdf\xff\xff\xff\xff\xa1a", "not a whole file of flax parameters"),
    (ext(5, b""), "msgpack extension type 5"),
    (ext(1, b"\x01"), "not a whole file of flax parameters"),
    (flax_array((2**40,), "float32", 4), "not a whole file of flax"),
    (flax_array((-1, 2**40), "float32", 4), "not a whole file of flax"),
    (flax_array((1,), "O", 8), "holds an array of object"),
    (flax_array((1,), "S9", 9), r"holds an array of \|S9"),
    (flax_array((1,), "no type", 8), "data type 'no type' not understood"),
  ),
)
def test_malformed_files_are_refused(tmp_path, content, expected):
  path = tmp_path / "file"
  path.write_bytes(content)
  with pytest.raises(InputError, match=expected) as caught:
    read_tensor_file(path)
  assert str(caught.value).startswith(f"{path} ")


def test_what_is_not_a_file_is_refused(tmp_path):
  with pytest.raises(InputError, match="nowhere cannot be read: No such file"):
    read_tensor_file(tmp_path / "nowhere")
  with pytest.raises(InputError, match="cannot be read: Is a directory"):
    read_tensor_file(tmp_path)


def test_all_problems_are_listed_at_once():
  with pytest.raises(InputError) as caught:
    check_tensors(TENSORS, {"a.b": (2, 2), "a.c": (1,), "e": (3,)}, "HERE")
  assert str(caught.value).splitlines() == [
    "HERE:",
    "  shape of a.c: (), expected (1,)",
    "  missing: e",
    "  unexpected: d",
  ]


def mutate(content, changes):
  """Applies changes, each at a place given as a share of the length."""
  for kind, place, value, name in changes:
    at = int(place * len(content))
    if kind == "set":
      content = content[:at] + bytes([value]) + content[at + 1 :]
    elif kind == "flip":
      old = content[at] if at < len(content) else 0
      new = bytes([old ^ (1 << value % 8)])
      content = content[:at] + new + content[at + 1 :]
    elif kind == "cut":
      content = content[:at]
    elif kind == "drop":
      content = content[:at] + content[at + value :]
    elif kind == "insert":
      content = content[:at] + bytes([value]) * (1 + value % 9) + content[at:]
    else:  # Some bytes of another file.
      other = SEEDS[name]
      start = int(place * len(other))
      content = content[:at] + other[start : start + value] + content[at:]
  return content


def with_entry(content, place, changes):
  """A valid archive, its checksums right, with one entry mutated."""
  result = io.BytesIO()
  with (
    zipfile.ZipFile(io.BytesIO(content)) as source,
    zipfile.ZipFile(result, "w") as target,
  ):
    names = source.namelist()
    pickles = [name for name in names if name.endswith("/data.pkl")]
    # Most often the pickle: it is what a reader interprets.
    chosen = [*names, *(pickles * len(names) * 4)]
    chosen = chosen[int(place * len(chosen)) % len(chosen)]
    for name in names:
      entry = source.read(name)
      if name == chosen:
        entry = mutate(entry, changes)
      target.writestr(name, entry)
  return result.getvalue()


def with_header(content, changes):
  """Safetensors whose header is mutated, its length right."""
  (length,) = struct.unpack("<Q", content[:8])
  header = mutate(content[8 : 8 + length], changes)
  return safetensors_header(b"{" + header[1:]) + content[8 + length :]


changes = st.lists(
  st.tuples(
    st.sampled_from(("set", "flip", "cut", "drop", "insert", "splice")),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 255),
    st.sampled_from(weight_files.FILES),
  ),
  min_size=1,
  max_size=6,
)


@pytest.fixture(scope="module")
def fuzzed_path(tmp_path_factory):
  return tmp_path_factory.mktemp("fuzz") / "file"


@given(
  name=st.sampled_from(weight_files.FILES),
  is_deep=st.booleans(),
  place=st.floats(0, 1, exclude_max=True),
  changes=changes,
)
def test_fuzzed_files_are_read_or_refused(
  fuzzed_path, name, is_deep, place, changes
):
  """Nothing but an InputError, and little memory."""
  content = SEEDS[name]
  if is_deep and zipfile.is_zipfile(io.BytesIO(content)):
    content = with_entry(content, place, changes)
  elif is_deep and name == "model.safetensors":
    content = with_header(content, changes)
  else:
    content = mutate(content, changes)
  fuzzed_path.write_bytes(content)
  tracemalloc.start()
  try:
    tensors = read_tensor_file(fuzzed_path).tensors
  except InputError as error:
    assert len(str(error)) < 1000
  else:
    for array in tensors.values():
      array.tobytes()  # A view past its storage would crash.
  finally:
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
  # Some 260 kB are the buffer for the hash, whatever the file.
  assert peak < 300_000 + 20 * len(content)
