"""Files of `torch.save` and `torch.jit.save`, read and written without torch.

They are zip archives. `data.pkl` is a pickle of containers, in which a tensor
refers to a storage; each storage's bytes are an entry of their own.
"""

from __future__ import annotations

import functools
import io
import math
import os
import pathlib
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from cops_jax.files import write_file

_DTYPES = {
  "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
  "BoolStorage": np.dtype(np.bool_),
  "ByteStorage": np.dtype(np.uint8),
  "CharStorage": np.dtype(np.int8),
  "DoubleStorage": np.dtype(np.float64),
  "FloatStorage": np.dtype(np.float32),
  "HalfStorage": np.dtype(np.float16),
  "IntStorage": np.dtype(np.int32),
  "LongStorage": np.dtype(np.int64),
  "ShortStorage": np.dtype(np.int16),
}
_STORAGES = {dtype: name for name, dtype in _DTYPES.items()}
# Functions whose value is their first argument: parameters, typed lists.
_FIRST_ARGUMENT = (
  "torch._utils._rebuild_parameter",
  "torch.jit._pickle.build_boollist",
  "torch.jit._pickle.build_doublelist",
  "torch.jit._pickle.build_intlist",
  "torch.jit._pickle.build_tensorlist",
  "torch.jit._pickle.restore_type_tag",
)
# Instructions of the pickles that torch writes.
_OPCODES = set(
  "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1"
  " BINFLOAT BINUNICODE SHORT_BINUNICODE EMPTY_DICT EMPTY_LIST EMPTY_TUPLE"
  " TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS SETITEM SETITEMS BINPUT"
  " LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE NEWOBJ"
  " BUILD BINPERSID".split()
)
# The pickle of the largest CLIP has 300 kB and 6,500 tuples.
_MAX_PICKLE_BYTES = 4 << 20
_MAX_TUPLES = 20_000
_RECORD = "record.json"


def read(path: pathlib.Path) -> tuple[Any, str]:
  """Returns the containers and arrays of a file, and the text beside them.

  No code of the file is run. An array is a read-only view of its storage.

  Args:
    path: path of the file.

  Raises:
    Exception: of many kinds; the file is damaged, of another format, or asks
      for anything but tensors and plain containers.
  """
  with zipfile.ZipFile(path) as archive:
    entries = archive.infolist()
    claimed = sum(entry.compress_size for entry in entries)
    if claimed > os.path.getsize(path):
      raise ValueError(f"its entries claim {claimed} bytes, more than it has")
    names = {entry.filename.partition("/")[2]: entry for entry in entries}

    def read_entry(name, limit=math.inf):
      if name not in names:
        raise ValueError(f"its entry {name} is missing")
      entry = names[name]
      if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"its entry {name} is compressed; torch stores it")
      if entry.file_size > limit:
        raise ValueError(f"its entry {name} has more than {limit} bytes")
      return archive.read(entry)

    is_big = "byteorder" in names and read_entry("byteorder") == b"big"
    stream = read_entry("data.pkl", _MAX_PICKLE_BYTES)
    _check_instructions(stream)
    root = _Unpickler(stream, read_entry, ">" if is_big else "<").load()
    record = read_entry(_RECORD).decode() if _RECORD in names else ""
  return root, record


def _check_instructions(stream):
  """Raises ValueError for what pickle's C code does without a check.

  It allocates by the index of a memo entry and hashes tuples within tuples by
  recursion, which ends the process.
  """
  num_tuples = 0
  for opcode, argument, position in pickletools.genops(stream):
    if opcode.name not in _OPCODES:
      raise ValueError(f"its pickle has the instruction {opcode.name}")
    num_tuples += opcode.name.startswith("TUPLE")
    if num_tuples > _MAX_TUPLES:
      raise ValueError(f"its pickle has more than {_MAX_TUPLES} tuples")
    if opcode.name in ("BINPUT", "LONG_BINPUT") and argument > position:
      raise ValueError(f"its pickle has the memo index {argument}")


class Module(dict):
  """The attributes of a TorchScript object."""

  def __setstate__(self, state):
    self.update(state)


class _OrderedDict(dict):
  """A state dict; its attributes are torch's notes on versions."""

  def __setstate__(self, state):
    pass


class _Storage(NamedTuple):
  dtype: np.dtype
  content: memoryview


class _Unpickler(pickle.Unpickler):
  """Admits tensors and plain containers.

  A name stands for a function made for it here, never for what it names.
  """

  def __init__(self, stream, read_entry, byte_order):
    super().__init__(io.BytesIO(stream))
    self._read_entry = functools.cache(read_entry)
    self._byte_order = byte_order

  def find_class(self, module, name):
    full_name = f"{module}.{name}"
    if full_name == "torch._utils._rebuild_tensor_v2":
      return lambda *arguments: _make_array(*arguments[:4])
    if full_name in _FIRST_ARGUMENT:
      return lambda first, *_: first
    if full_name == "collections.OrderedDict":
      return lambda: _OrderedDict()
    if module == "torch" and name in _DTYPES:
      return name
    if module.startswith("__torch__"):  # A TorchScript class.
      return Module
    raise ValueError(
      f"it asks for {full_name[:200]}. Only tensors and plain containers are"
      " read; nothing of it was run. Get a file that holds nothing else, such"
      " as safetensors"
    )

  def persistent_load(self, pid):
    tag, storage, key, _, size = pid
    dtype = _DTYPES[storage].newbyteorder(self._byte_order)
    if tag != "storage" or not isinstance(key, str) or size < 0:
      raise ValueError("it refers to something else than a storage")
    content = memoryview(self._read_entry(f"data/{key}"))
    num_bytes = size * dtype.itemsize
    if len(content) < num_bytes:
      raise ValueError(
        f"its storage {key} has {len(content)} bytes instead of {num_bytes}"
      )
    return _Storage(dtype, content[:num_bytes])


def _make_array(storage, offset, shape, strides):
  if not isinstance(storage, _Storage):
    raise ValueError("it makes a tensor from something else than a storage")
  dtype, content = storage
  # NumPy checks that all elements are within the buffer.
  array = np.ndarray(
    shape,
    dtype,
    content,
    offset * dtype.itemsize,
    [stride * dtype.itemsize for stride in strides],
  )
  if array.nbytes > len(content):  # Strides of zero make much out of little.
    raise ValueError(
      f"a tensor of shape {array.shape} does not fit its storage"
    )
  return array


def write(
  path: str | os.PathLike,
  tensors: Mapping[str, np.ndarray],
  root: str,
  record: str = "",
) -> None:
  """Writes `{root: tensors}` as `torch.save` does; `torch.load` reads it.

  The same input gives the same bytes.

  Args:
    path: path of the file.
    tensors: arrays by name.
    root: the one key of the outer dictionary.
    record: any text, in an entry that torch ignores.

  Raises:
    WriteError: the file cannot be written.
  """
  entries = {"data.pkl": _dump(tensors, root), "byteorder": b"little"}
  for key, array in enumerate(tensors.values()):
    little = array.dtype.newbyteorder("<")
    entries[f"data/{key}"] = np.asarray(array, little, order="C").tobytes()
  entries["version"] = b"3\n"
  if record:
    entries[_RECORD] = record.encode()
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
    for name, content in entries.items():
      # The date and the system are fixed; the folder's name is torch's default.
      entry = zipfile.ZipInfo(f"archive/{name}", (1980, 1, 1, 0, 0, 0))
      entry.create_system = 3
      archive.writestr(entry, content)
  write_file(path, file.getvalue())


def _dump(tensors, root):
  """Returns the pickle of `{root: tensors}`; storages are "0", "1", ..."""
  parts = [b"\x80\x02}", _text(root), b"}("]
  for key, (name, array) in enumerate(tensors.items()):
    storage = _STORAGES[array.dtype.newbyteorder("=")]
    # In elements, of the C order that storages are written in.
    strides = [math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
    parts += [_text(name), b"ctorch._utils\n_rebuild_tensor_v2\n(("]
    parts += [_text("storage"), f"ctorch\n{storage}\n".encode()]
    parts += [_text(str(key)), _text("cpu"), _integers([array.size]), b"tQ"]
    parts += [_integers([0]), b"(", _integers(array.shape), b"t("]
    parts += [_integers(strides), b"t\x89ccollections\nOrderedDict\n)RtR"]
  return b"".join([*parts, b"us."])


def _text(value):
  encoded = value.encode()
  return b"X" + struct.pack("<I", len(encoded)) + encoded


def _integers(values):
  return b"".join(b"J" + struct.pack("<i", value) for value in values)
