"""torch's format without torch: what is refused, and at what cost.

Hostile, damaged and malformed files, and other formats.
"""

import os
import pathlib
import pickle
import struct
import sys
import time
import tracemalloc
import zipfile

import numpy as np
import pytest

from cops_jax.errors import InputError
from cops_jax.weights.torch_files import read_tensors
from helpers import weight_files


def archive(path, pickled, storages=(), compression=zipfile.ZIP_STORED):
  """A zip archive as torch lays it out, with any pickle in it."""
  with zipfile.ZipFile(path, "w", compression) as file:
    file.writestr("archive/data.pkl", pickled)
    for key, content in enumerate(storages):
      file.writestr(f"archive/data/{key}", content)
  return path


def tensor(shape, strides, size, offset=0, key="0", kind="FloatStorage"):
  """A pickle of {"x": a tensor} with any numbers, valid or not."""

  def number(value):
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)

  def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"

  return b"".join(
    (
      b"\x80\x02}X\x01\0\0\0xctorch._utils\n_rebuild_tensor_v2\n((",
      b"X\x07\0\0\0storagectorch\n" + kind.encode() + b"\n",
      b"X" + struct.pack("<I", len(key)) + key.encode() + b"X\x03\0\0\0cpu",
      *(number(size), b"tQ", number(offset), numbers(shape), numbers(strides)),
      b"\x89ccollections\nOrderedDict\n)RtRs.",
    )
  )


@pytest.fixture
def path(tmp_path):
  return tmp_path / "file.pth"


def refuse(path, expected):
  """The file's one error, a message that begins with its path."""
  with pytest.raises(InputError, match=expected) as caught:
    read_tensors(path)
  assert str(caught.value).startswith(f"{path} cannot be read as a torch file:")
  assert len(str(caught.value)) < 600


class Call:
  """Pickles as a call of a function, whose result may be given a state."""

  def __init__(self, function, *arguments, state=None):
    self.reduced = function, arguments, state

  def __reduce__(self):
    return self.reduced


def touch(target):
  return f"touch {target}"


def hostile(target):
  """Pickles that would create a file if any instruction of theirs ran."""
  code = f"open({str(target)!r}, 'w').close()"
  for protocol in range(6):
    yield "posix.system", pickle.dumps(Call(os.system, touch(target)), protocol)
    yield "builtin.*eval", pickle.dumps(Call(eval, code), protocol)
    yield (
      "posix.system",
      pickle.dumps({"a": [{"b": Call(os.system, touch(target))}]}, protocol),
    )
    yield "pathlib", pickle.dumps(pathlib.PurePosixPath("a"), protocol)
  text = touch(target).encode()
  yield "os.system", b"(S'" + text + b"'\nios\nsystem\n."
  yield "os.system", b"cos\nsystem\n(S'" + text + b"'\ntR."
  yield "os.system", b"(cos\nsystem\nS'" + text + b"'\no."
  yield "builtins.exec", b"cbuiltins\nexec\n(S'" + code.encode() + b"'\ntR."
  yield "builtins.getattr", b"\x80\x02cbuiltins\ngetattr\n."
  yield "torch.load", b"\x80\x02ctorch\nload\n."
  yield "torch.serialization.load", b"\x80\x02ctorch.serialization\nload\n."
  yield "_load_from_bytes", b"\x80\x02ctorch.storage\n_load_from_bytes\n."
  yield "numpy.*scalar", pickle.dumps(np.float64(1), 2)
  yield (
    "numpy.*_reconstruct",
    pickle.dumps({"x": np.array([Call(os.system, touch(target))])}, 2),
  )
  # Names put together on the stack, plain and from the memo.
  strings = b"\x8c\x02os\x94\x8c\x06system\x94"
  yield "os.system", b"\x80\x04" + strings + b"\x93."
  yield "os.system", b"\x80\x04](" + strings + b"eh\x00h\x01\x93."
  # The admitted names do not call what they are given.
  admitted = b"\x80\x02ccollections\nOrderedDict\n("
  yield "os.system", admitted + b"cos\nsystem\ntR."
  yield "collections.OrderedDict with 1", admitted + b"](K\x01K\x02etR."
  # Objects whose state would be set by code of theirs.
  yield "evil_module.Evil", b"\x80\x02cevil_module\nEvil\n)\x81}b."
  yield "evil_module.Evil", b"\x80\x02(ievil_module\nEvil\n}b."
  yield "sets the state of a list", b"\x80\x02]}b."
  yield "__builtin__.object", pickle.dumps(Call(object, state={"a": 1}), 2)
  # Registered extensions and persistent ids of other kinds.
  yield "instruction EXT1", b"\x80\x02\x82\x01."
  yield "instruction PERSID", b"Pos.system\n."
  yield "calls a str", b"\x80\x02X\x02\0\0\0os)R."
  yield "calls __torch__.os.system", b"\x80\x02c__torch__.os\nsystem\n)R."


def test_hostile_pickles_are_refused_by_name_and_nothing_runs(
  tmp_path, path, monkeypatch
):
  target = tmp_path / "was_run"
  (tmp_path / "evil_module.py").write_text(
    f"open({str(target)!r}, 'w').close()"
  )
  monkeypatch.syspath_prepend(tmp_path)
  cases = list(hostile(target))
  assert len(cases) > 40
  for expected, pickled in cases:
    archive(path, pickled)
    refuse(path, expected)
    assert not target.exists() and "evil_module" not in sys.modules
  # The files do what they say where they are unpickled.
  with pytest.raises(AttributeError):
    pickle.loads(b"cevil_module\nEvil\n.")
  assert target.exists()


@pytest.mark.parametrize(
  "pickled, expected",
  (
    (tensor((2,), (1,), 2**40), "storage 0 has 16 bytes instead of"),
    (tensor((2**40,), (0,), 4), "does not fit its storage 0 of 4 elements"),
    (tensor((2**30, 2**30), (1, 1), 4), "does not fit its storage"),
    (tensor((2,), (3,), 4, offset=1), "does not fit its storage"),
    (tensor((2,), (1,), 4, offset=2**50), "does not fit its storage"),
    (tensor((2,), (-1,), 4), "not made of natural numbers"),
    (tensor((-2,), (1,), 4), "not made of natural numbers"),
    (tensor((2**62,), (1,), 4), "not made of natural numbers"),
    (tensor((1,) * 40, (1,) * 40, 4), "40 dimensions"),
    (tensor((1, 2), (1,), 4), "2 dimensions and 1 strides"),
    (tensor((2,), (1,), 4, key="1"), "entry data/1 is missing"),
    (tensor((2,), (1,), 4, key="../data.pkl"), r"entry data/../data.pkl is m"),
    (tensor((2,), (1,), 4, kind="load"), "asks for torch.load"),
    (b"\x80\x02]" + b"]" * 5000 + b"a" * 5000 + b".", "holds no dictionary"),
    (b"\x80\x02K\x01.", "holds no dictionary of tensors"),
    (b"\x80\x02}", "exhausted before seeing STOP"),
    (b"\x80\x02}X\xff\xff\xff\x7fa.", "string4"),
    (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fa.", "bytes8"),
    (b"\x80\x02" + b"}" * 5000 + b".", "too many objects: they need more than"),
    (
      b"\x80\x02}" + b"q\x01" * 5000 + b".",
      "too many objects: they need more than",
    ),
    (b"\x80\x02h\x05.", "damaged or incomplete"),
    (b"\x80\x02s.", "damaged or incomplete"),
    (b"\x80\x02}(K\x01u.", "sets a key without a value"),
    (b"\x80\x02}](K\x01K\x02es.", "damaged or incomplete"),
    (b"\x80\x02}]K\x01s.", "has a list for a key"),
    # A tuple that takes 2^60 steps to hash.
    (b"\x80\x02})" + b"q\0h\0\x86" * 60 + b"Ns.", "has a tuple for a key"),
    (b"\x80\x02}K\x07NsX\x01\0\0\x007Ns.", "has two keys 7"),
    (b"I" + b"9" * 5000 + b"\n.", "Exceeds the limit"),
    (
      b"\x80\x02}X\x2c\x01\0\0" + b"n" * 300 + b"}s.",
      "name is too long, above 256 characters",
    ),
    (b"S'\\h'\n.", "its pickle has the instruction STRING"),
    (b"\x80\x02}}.", "its pickle ends with 2 values"),
    (b"", "exhausted before seeing STOP"),
  ),
)
def test_malformed_pickles_are_refused(path, pickled, expected):
  archive(path, pickled, [bytes(16)])
  tracemalloc.start()
  try:
    refuse(path, expected)
    assert tracemalloc.get_traced_memory()[1] < 1e6 + 40 * len(pickled)
  finally:
    tracemalloc.stop()


def test_numbers_of_one_hash_are_read_quickly(path):
  """In a dictionary of numbers, each would be compared with all others."""
  numbers = (index * (2**61 - 1) for index in range(50_000))
  items = (b"\x8a\x0a" + n.to_bytes(10, "little") + b"N" for n in numbers)
  archive(path, b"\x80\x02}(" + b"".join(items) + b"u.")
  start = time.process_time()
  assert read_tensors(path).tensors == {}
  assert time.process_time() - start < 10


def test_a_billion_tensors_of_one_storage(path):
  """A small pickle that names one storage again and again."""
  one = tensor((256,), (1,), 256)
  made, rest = one[: one.index(b"s.")], b"q\x01"
  for index in range(300):
    name = f"t{index}".encode()
    rest += b"sX" + struct.pack("<I", len(name)) + name + b"h\x01"
  archive(path, made + rest + b"s.", [bytes(1024)])
  # One tensor under many names is one array.
  assert len({id(a) for a in read_tensors(path).tensors.values()}) == 1
  head = b"\x80\x02}("
  body = one[one.index(b"X\x01\0\0\0x") : one.index(b"s.")]
  entries = (
    b"X\x03\0\0\0" + f"{index:03}".encode() + body[6:] for index in range(300)
  )
  archive(path, head + b"".join(entries) + b"u.", [bytes(1024)])
  refuse(path, "tensors overlap; together they exceed the file")


def test_dictionaries_that_hold_each_other(path):
  """2^40 paths lead through this file, and some in a circle."""
  pickled = b"\x80\x02}X\x01\0\0\0x]q\xff}q\x00X\x01\0\0\0ch\xffsa"
  for level in range(1, 41):
    below = b"h" + bytes([level - 1])
    pickled += b"}q" + bytes([level])
    pickled += b"(X\x01\0\0\0a" + below + b"X\x01\0\0\0b" + below + b"ua"
  archive(path, pickled + b"s.")
  assert read_tensors(path).tensors == {}


def test_other_formats_are_refused(path):
  path.write_bytes(b"no zip")
  refuse(path, "it is not a zip archive")
  archive(path, b"")
  with zipfile.ZipFile(path, "w") as file:
    file.writestr("other.txt", "")
  refuse(path, "a zip archive without a data.pkl")
  for protocol in (2, 4):
    path.write_bytes(pickle.dumps({"a": 1}, protocol))
    refuse(path, "bare pickle, as torch before 1.6 wrote it. Convert it once")


def test_the_format_before_zip_and_the_advice_for_it(path):
  torch = pytest.importorskip("torch")
  saved = {"x": torch.arange(3.0)}
  torch.save(saved, path, _use_new_zipfile_serialization=False)
  refuse(path, "bare pickle")
  loaded = torch.load(path, map_location="cpu", weights_only=True)
  torch.save(loaded, path)
  assert read_tensors(path).tensors["x"].tolist() == [0, 1, 2]


def test_every_truncation_of_a_real_file(path):
  whole = (weight_files.DATA / "epoch_1.pth").read_bytes()
  for length in range(4, len(whole), 97):
    path.write_bytes(whole[:length])
    refuse(path, "damaged or incomplete")


def refuse_within(num_bytes, path, expected):
  tracemalloc.start()
  try:
    refuse(path, expected)
    assert tracemalloc.get_traced_memory()[1] < num_bytes
  finally:
    tracemalloc.stop()


def test_a_zip_bomb_is_refused(path):
  """Entries that are compressed, or claim more than the file has."""
  size = 2**26
  bomb = tensor((size // 4,), (1,), size // 4)
  archive(path, bomb, [bytes(size)], zipfile.ZIP_DEFLATED)
  assert path.stat().st_size < size / 500
  expected = "entry data.pkl is compressed; torch stores it plain"
  refuse_within(1e6, path, expected)
  with zipfile.ZipFile(path, "w") as file:
    file.writestr("archive/data.pkl", bomb)
    file.writestr("archive/data/0", bytes(size), zipfile.ZIP_DEFLATED)
  refuse_within(1e6, path, "entry data/0 is compressed; torch stores it plain")

  archive(path, bomb, [bytes(64)])
  content = path.read_bytes()
  # In the central directory: the size, then the size in the file too.
  entry, claim = content.rindex(b"PK\x01\x02"), struct.pack("<I", size)
  for at, expected in ((24, "states two sizes"), (20, "its entries claim")):
    content = content[: entry + at] + claim + content[entry + at + 4 :]
    path.write_bytes(content)
    refuse_within(1e6, path, expected)


def test_entries_that_share_their_bytes_are_refused(path):
  archive(path, tensor((2,), (1,), 2), [bytes(4096)])
  content = path.read_bytes()
  entry, end = content.rindex(b"PK\x01\x02"), content.rindex(b"PK\x05\x06")
  copies = 100 * content[entry:end]
  counts = struct.pack(
    "<HHI", 102, 102, end - content.index(b"PK\x01\x02") + len(copies)
  )
  path.write_bytes(
    content[:end]
    + copies
    + content[end : end + 8]
    + counts
    + content[end + 16 :]
  )
  refuse(path, "its entries claim 413")


def test_a_damaged_storage_is_refused(path):
  content = bytearray((weight_files.DATA / "epoch_1.pth").read_bytes())
  # torch aligns storages to 64 bytes.
  start = content.index(b"/data/5") + 64 & ~63
  content[start + 64] ^= 1
  path.write_bytes(content)
  refuse(path, "damaged or incomplete")


def test_missing_file_is_reported(path):
  with pytest.raises(InputError, match="No such file or directory"):
    read_tensors(path)
