"""Hostile, damaged and foreign weight files, each refused in one sentence."""

import io
import json
import os
import pickle
import struct
import sys
import tracemalloc
import zipfile

import msgpack
import numpy as np
import pytest
from safetensors.numpy import save

from cops_jax.errors import InputError
from cops_jax.weights.tensor_files import read_tensor_file
from helpers import weight_files


def archive(stream, *storages, compression=zipfile.ZIP_STORED):
  """Returns a zip archive in torch's layout, with any pickle in it."""
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", compression) as entries:
    entries.writestr("archive/data.pkl", stream)
    for key, content in enumerate(storages):
      entries.writestr(f"archive/data/{key}", content)
  return file.getvalue()


def pickled(
  shape, strides, size=4, offset=0, key="0", kind="FloatStorage", name=b"x"
):
  """Returns a pickle of {name: a tensor} with any numbers, valid or not."""

  def number(value):
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)

  def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"

  return b"".join(
    (
      b"\x80\x02}X" + struct.pack("<I", len(name)) + name,
      b"ctorch._utils\n_rebuild_tensor_v2\n((",
      b"X\x07\0\0\0storagectorch\n" + kind.encode() + b"\n",
      b"X" + struct.pack("<I", len(key)) + key.encode() + b"X\x03\0\0\0cpu",
      *(number(size), b"tQ", number(offset), numbers(shape), numbers(strides)),
      b"\x89ccollections\nOrderedDict\n)RtRs.",
    )
  )


def tensor(*arguments, **more):
  """Returns a file with a tensor of `pickled` and a storage of 16 bytes."""
  return archive(pickled(*arguments, **more), bytes(16))


def refuse(path, content, expected):
  """Checks that reading a file fails with little memory and names the file."""
  path.write_bytes(content)
  tracemalloc.start()
  try:
    with pytest.raises(InputError, match=expected) as caught:
      read_tensor_file(path)
    # The buffer for the hash has about 260 kB.
    peak = tracemalloc.get_traced_memory()[1]
    assert peak < 1e6 + 60 * len(content), expected
  finally:
    tracemalloc.stop()
  message = str(caught.value)
  assert message.startswith(f"{path} ") and len(message) < 700
  assert "\n" not in message


class Call:
  """Pickles as a call of a function, optionally with a state for its result."""

  def __init__(self, function, *arguments, state=None):
    self.reduced = function, arguments, state

  def __reduce__(self):
    return self.reduced


def hostile(target):
  """Yields pickles that would create a file if their instructions ran."""
  code = f"open({str(target)!r}, 'w').close()"
  touch = f"touch {target}"
  for protocol in range(2, 6):
    yield "posix.system", pickle.dumps(Call(os.system, touch), protocol)
    yield "builtin.*eval", pickle.dumps(Call(eval, code), protocol)
    yield (
      "posix.system",
      pickle.dumps({"a": [{"b": Call(os.system, touch)}]}, protocol),
    )
  text = b"X" + struct.pack("<I", len(touch)) + touch.encode()
  yield "os.system", b"\x80\x02cos\nsystem\n(" + text + b"tR."
  yield "builtins.getattr", b"\x80\x02cbuiltins\ngetattr\n."
  yield "torch.load", b"\x80\x02ctorch\nload\n."
  yield "_load_from_bytes", b"\x80\x02ctorch.storage\n_load_from_bytes\n."
  yield (
    "numpy.*_reconstruct",
    pickle.dumps({"x": np.array([Call(os.system, touch)])}, 2),
  )
  # These names are built on the stack, plainly and from the memo.
  strings = b"\x8c\x02os\x94\x8c\x06system\x94"
  yield "os.system", b"\x80\x04" + strings + b"\x93."
  yield "to os . s, but only", b"\x80\x04\x8c\x03os\n\x8c\x02\x1bs\x93."
  yield "os.system", b"\x80\x04](" + strings + b"eh\x00h\x01\x93."
  # Known names do not call their arguments.
  admitted = b"\x80\x02ccollections\nOrderedDict\n"
  yield "os.system", admitted + b"(cos\nsystem\ntR."
  yield "TypeError", admitted + b"(](K\x01K\x02etR."
  # Some objects set their state with their own code; some states are shared.
  yield "evil_module.Evil", b"\x80\x02cevil_module\nEvil\n)\x81}b."
  yield "AttributeError", b"\x80\x02]}X\x01\0\0\0xK\x01sb."
  yield "contains no dictionary", admitted + b"}X\x01\0\0\0xK\x01sb."
  yield "TypeError", b"\x80\x02c__torch__\nA\n}X\x01\0\0\0xK\x01sb."
  yield "builtin__.object", pickle.dumps(Call(object, state={"a": 1}), 2)
  # Old instructions, registered extensions and persistent ids also name code.
  yield "instruction INST", b"\x80\x02(ievil_module\nEvil\n}b."
  yield "instruction STRING", b"(S'" + touch.encode() + b"'\nios\nsystem\n."
  yield "instruction EXT1", b"\x80\x02\x82\x01."
  yield "instruction PERSID", b"Pos.system\n."
  yield "'str' object is not callable", b"\x80\x02X\x02\0\0\0os)R."


def test_hostile_pickles_are_refused_by_name_and_nothing_runs(
  tmp_path, monkeypatch
):
  target = tmp_path / "was_run"
  (tmp_path / "evil_module.py").write_text(
    f"open({str(target)!r}, 'w').close()"
  )
  monkeypatch.syspath_prepend(tmp_path)
  cases = list(hostile(target))
  assert len(cases) > 30
  for expected, stream in cases:
    refuse(tmp_path / "file.pth", archive(stream), expected)
    assert not target.exists() and "evil_module" not in sys.modules
  # A plain pickle.loads does run them.
  with pytest.raises(AttributeError):
    pickle.loads(b"cevil_module\nEvil\n.")
  assert target.exists()


def doubled():
  """Returns the instructions for a tuple with 2^60 paths through it."""
  levels = (b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))
  return b")" + b"".join(levels)


_STORAGE = pickled((1,), (1,)).partition(b"((")[2].partition(b"Q")[0] + b"Q"
STORAGE_AS_ARGUMENTS = (
  b"\x80\x02ctorch.jit._pickle\nbuild_intlist\n(" + _STORAGE + b"R."
)
LONG_STRIDES = b"".join(
  (
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((" + _STORAGE,
    b"K\x00(K\x01t](X\x00\x00\x10\x00" + bytes(2**20),
    b"q\x05" + b"h\x05" * 1000 + b"e\x89NtR.",
  )
)


def bomb():
  """Returns a file with a compressed storage of 64 MiB of zeros."""
  return archive(b"\x80\x02}.", bytes(2**26), compression=zipfile.ZIP_DEFLATED)


def compressed_storage():
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w") as entries:
    entries.writestr("archive/data.pkl", pickled((1,), (1,)))
    entries.writestr("archive/data/0", bytes(2**26), zipfile.ZIP_DEFLATED)
  return file.getvalue()


def claim(at):
  """Returns a file whose central directory has a wrong size at an offset."""
  content = tensor((1,), (1,), 2**24)
  entry = content.rindex(b"PK\x01\x02") + at
  return content[:entry] + struct.pack("<I", 2**26) + content[entry + 4 :]


def shared_entries():
  """Returns a file whose directory names one entry's bytes a hundred times."""
  content = archive(pickled((2,), (1,)), bytes(4096))
  entry, end = content.rindex(b"PK\x01\x02"), content.rindex(b"PK\x05\x06")
  start = content.index(b"PK\x01\x02")
  many = 100 * content[entry:end]
  counts = struct.pack("<HHI", 102, 102, end - start + len(many))
  tail = content[end : end + 8] + counts + content[end + 16 :]
  return content[:end] + many + tail


def circle():
  """Returns a file with 2^40 paths through its containers and with a circle."""
  stream = b"\x80\x02}X\x01\0\0\0x]q\x00}q\x01X\x01\0\0\0ch\x00sa"
  for level in range(2, 42):
    below = b"h" + bytes([level - 1])
    stream += b"}q" + bytes([level])
    stream += b"(X\x01\0\0\0a" + below + b"X\x01\0\0\0b" + below + b"ua"
  return archive(stream + b"s.")


def flipped():
  content = bytearray((weight_files.DATA / "epoch_1.pth").read_bytes())
  # torch aligns storages to 64 bytes.
  content[(content.index(b"/data/5") + 128) & ~63] ^= 1
  return bytes(content)


@pytest.mark.parametrize(
  "content, expected",
  (
    # The declared sizes are larger than the file.
    (tensor((2,), (1,), 2**40), "storage 0 has 16 bytes instead of"),
    (tensor((2**40,), (0,)), "does not fit its storage"),
    (tensor((2**30, 2**30), (1, 1)), "cannot be read as a torch file"),
    (tensor((2,), (3,), offset=1), "cannot be read as a torch file"),
    (tensor((2,), (1,), size=1), "cannot be read as a torch file"),
    (tensor((2,), (-1,)), "cannot be read as a torch file"),
    (tensor((-2,), (1,)), "read as a torch file"),
    # A sum overflows to 0 in 64 bits; each of many strides has 4 MB.
    (
      archive(pickled((5,), (2**60,), 8), bytes(32)),
      "does not fit its storage",
    ),
    (
      archive(LONG_STRIDES, bytes(16)),
      "offset, shape or strides are invalid",
    ),
    (tensor((1,) * 70, (1,) * 70), "cannot be read as a torch file"),
    (tensor((1, 2), (1,)), "cannot be read as a torch file"),
    (tensor((2,), (1,), size=-1), "something other than a storage"),
    (tensor((2,), (1,), key="1"), "entry data/1 is missing"),
    (tensor((2,), (1,), key="../data.pkl"), r"entry data/../data.pkl is m"),
    (tensor((2,), (1,), kind="load"), "refers to torch.load"),
    (bomb(), "entry data.pkl is compressed, unlike torch's"),
    (compressed_storage(), "entry data/0 is compressed, unlike torch's"),
    (claim(20), "its entries claim"),
    (claim(24), "cannot be read as a torch file"),
    (shared_entries(), "its entries claim|Overlapped"),
    # pickle's C code does not check these.
    (archive(b"\x80\x02})" + b"\x85" * 10**5 + b"Ns."), "has 100001 tuples"),
    (archive(b"\x80\x02(N" + doubled() + b"NNNtQ."), "other than a storage"),
    (archive(STORAGE_AS_ARGUMENTS, bytes(16)), "damaged or incomplete"),
    (archive(b"\x80\x02}r\0\0\0\x7f."), "memo index 2130706432"),
    (
      archive(b"\x80\x02}X\xff\xff\xff\x7fa."),
      "cannot be read as a torch file",
    ),
    (
      archive(b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fa."),
      "cannot be read as a torch file",
    ),
    (archive(b"\x80\x02]" + b"]" * 10**5 + b"a" * 10**5 + b"."), "no dictiona"),
    (
      archive(
        b"\x80\x02" + 3000 * b"}X\x01\0\0\0a" + b"N" + b"s" * 3000 + b"."
      ),
      "RecursionError",
    ),
    # These pickles are malformed.
    (archive(b"\x80\x02K\x01."), "contains no dictionary of tensors"),
    (archive(b"\x80\x02}"), "exhausted before seeing STOP"),
    (archive(b"\x80\x02}(K\x01u."), "damaged or incomplete"),
    (archive(b"\x80\x02}]K\x01s."), "unhashable type"),
    (archive(b"\x80\x02})Ns."), "has a tuple as a key"),
    (archive(pickled((1,), (1,), name=b"\x1b[m"), bytes(16)), r": '\\x1b\[m'"),
    # These archives are damaged or have another format.
    (flipped(), "damaged or incomplete"),
    (b"PK no zip", "damaged or incomplete"),
    (b"PK\x05\x06" + bytes(18), "its entry data.pkl is missing"),
    (b"", "cut off or has another format"),
    (b"<!DOCTYPE html>", "cut off or has another format"),
    (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    (pickle.dumps({"a": 1}, 2), "bare pickle, which torch before 1.6 wrote. "),
  ),
)
def test_malformed_torch_files_are_refused(tmp_path, content, expected):
  refuse(tmp_path / "file.pth", content, expected)


# The state of a TorchScript object is neither hashed nor copied.
_STATE = b"\x80\x02c__torch__\nA\n)\x81](" + doubled() + b"N\x86eb."


@pytest.mark.parametrize("content", (circle(), archive(_STATE)))
def test_containers_that_contain_each_other_are_read(tmp_path, content):
  path = tmp_path / "file.pth"
  path.write_bytes(content)
  assert read_tensor_file(path).tensors == {}


def safetensors(header):
  content = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack("<Q", len(content)) + content


def floats(shape, end):
  header = {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}
  return safetensors({"a": header}) + bytes(4)


def ext(code, content):
  return b"\x81\xa1a\xc9" + struct.pack(">IB", len(content), code) + content


def flax_array(shape, dtype, size):
  return ext(1, msgpack.packb((shape, dtype, bytes(size))))


@pytest.mark.parametrize(
  "content, expected",
  (
    (safetensors(b"{" * 9), "read as a safetensors file: "),
    (floats([2**40], 2**42), "read as a safetensors file: "),
    (floats([2**40], 4), "read as a safetensors file: "),
    (save({"a": np.zeros(3)})[:-1], "read as a safetensors file: "),
    # Each of these nested lists would be allocated before it is read.
    (b"\x81\xa1a" + b"\xdd\0\x10\0\0" * 300, r"1048576 exceeds max_array_len"),
    (b"\x81\xa1a" * 2000, "read as a flax msgpack file"),
    (b"\x81\xa1a\xc1", "read as a flax msgpack file"),
    (b"\xdf\xff\xff\xff\xff\xa1a", "read as a flax msgpack file"),
    (ext(1, b"\x01"), "read as a flax msgpack file"),
    (flax_array((2**40,), "float32", 4), "read as a flax msgpack file"),
    (flax_array((-1, 2**40), "float32", 4), "read as a flax msgpack file"),
    (flax_array((1,), "O", 8), "cannot create an OBJECT array"),
    (flax_array((1,), "no type", 8), "data type .*no type.* not understood"),
  ),
)
def test_malformed_safetensors_and_msgpack_are_refused(
  tmp_path, content, expected
):
  refuse(tmp_path / "file", content, expected)


@pytest.mark.parametrize("name", weight_files.FILES)
def test_cut_and_changed_files_are_read_or_refused(tmp_path, name):
  """Only InputError is raised; reading past a storage would end the process."""
  whole = (weight_files.DATA / name).read_bytes()
  path = tmp_path / "file"
  rng = np.random.default_rng(0)
  for position in rng.integers(0, len(whole), 40):
    refuse(path, whole[:position], "file")
    changed = bytearray(whole)
    changed[position] ^= 1 << rng.integers(8)
    path.write_bytes(changed)
    try:
      for array in read_tensor_file(path).tensors.values():
        array.tobytes()
    except InputError as error:
      assert len(str(error)) < 700


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
  for path, reason in ((tmp_path / "no", "No such file"), (tmp_path, "Is a")):
    with pytest.raises(InputError, match=f"cannot be read: {reason}"):
      read_tensor_file(path)
