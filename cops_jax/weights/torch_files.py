"""Reads files of `torch.save` and `torch.jit.save` without torch.

Also writes files of `torch.save`. The files are zip archives. `data.pkl` is a
pickle of containers in which a tensor refers to a storage, and the bytes of
each storage are an entry of the archive.
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
from typing import Any

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
# Functions for parameters and typed lists; here they return the first argument.
_FIRST_ARGUMENT = (
  "torch._utils._rebuild_parameter",
  "torch.jit._pickle.build_boollist",
  "torch.jit._pickle.build_doublelist",
  "torch.jit._pickle.build_intlist",
  "torch.jit._pickle.build_tensorlist",
  "torch.jit._pickle.restore_type_tag",
)
# Instructions of the pickles that torch writes.
_INSTRUCTIONS = set(
  "PROTO FRAME STOP MARK BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET NONE"
  " NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE"
  " SHORT_BINUNICODE EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 TUPLE EMPTY_LIST APPEND"
  " APPENDS EMPTY_DICT SETITEM SETITEMS GLOBAL STACK_GLOBAL BINPERSID REDUCE"
  " NEWOBJ BUILD".split()
)
_MAX_TUPLES = 20_000  # The largest CLIP has about 6,500.
_MAX_PICKLE_BYTES = 4 << 20  # The largest CLIP has 300 kB.
_MAX_AXES = 64  # NumPy's limit.
_RECORD = "record.json"


def read(path: pathlib.Path) -> tuple[Any, str]:
  """Returns the containers and arrays of a file, and its record as text.

  No code in the file is run. An array is a read-only view of its storage.

  Raises:
    Exception: if the file is damaged, has another format, or contains anything
      but tensors and plain containers. Errors have many types.
  """
  with zipfile.ZipFile(path) as archive:
    entries = archive.infolist()
    claimed = sum(entry.compress_size for entry in entries)
    if claimed > os.path.getsize(path):
      raise ValueError(f"its entries claim {claimed} bytes, but it has fewer")
    names = {entry.filename.partition("/")[2]: entry for entry in entries}

    def read_entry(name, limit=math.inf):
      if name not in names:
        raise ValueError(f"its entry {name} is missing")
      entry = names[name]
      if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"its entry {name} is compressed, unlike torch's")
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
  """Raises ValueError if a pickle could end the process or fill the memory.

  pickle allocates memory for the index of a memo entry, and hashes nested
  tuples by recursion.
  """
  num_tuples = 0
  for opcode, argument, position in pickletools.genops(stream):
    if opcode.name not in _INSTRUCTIONS:
      raise ValueError(f"its pickle has the instruction {opcode.name}")
    if opcode.name == "LONG_BINPUT" and argument > position:
      raise ValueError(f"its pickle has the memo index {argument}")
    num_tuples += "TUPLE" in opcode.name
  if num_tuples > _MAX_TUPLES:
    raise ValueError(f"its pickle has {num_tuples} tuples")


class Module:
  """A TorchScript object, with attributes that many objects can share."""

  def __init__(self):
    self.attributes = {}

  def __setstate__(self, state):
    self.attributes = state


class _OrderedDict(dict):
  """A state dict without its attributes, torch's notes on versions."""

  def __setstate__(self, state):
    pass


class _Storage:
  """Bytes that tensors are views of. A tuple could be arguments of a call."""

  def __init__(self, dtype, content):
    self.dtype, self.content = dtype, content

  def __setstate__(self, state):
    raise ValueError("its pickle changes a storage")


class _Unpickler(pickle.Unpickler):
  """Unpickles only tensors and plain containers.

  The functions that a pickle names are never called. Functions of this module
  replace them.
  """

  def __init__(self, stream, read_entry, byte_order):
    super().__init__(io.BytesIO(stream))
    self._read_entry = functools.cache(read_entry)
    self._byte_order = byte_order

  def find_class(self, module, name):
    full_name = f"{module}.{name}"
    if full_name == "torch._utils._rebuild_tensor_v2":
      # A pickle can set a function's attributes, so each call returns a new
      # function. It has no *arguments, which would copy a long tuple.
      return lambda a, b, c, d, e=None, f=None, g=None: _make_array(a, b, c, d)
    if full_name in _FIRST_ARGUMENT:
      return lambda first, second=None, third=None: first
    if full_name == "collections.OrderedDict":
      return lambda: _OrderedDict()
    if module == "torch" and name in _DTYPES:
      return name
    if module.startswith("__torch__"):  # A TorchScript class.
      return Module
    raise ValueError(
      f"it refers to {full_name[:200]}, but only tensors and plain containers"
      " are read. None of its code was run. Get a file without code, such as"
      " safetensors"
    )

  def persistent_load(self, pid):
    tag, storage, key, _, size = pid
    types = (type(tag), type(storage), type(key), type(size))
    if types != (str, str, str, int) or tag != "storage" or size < 0:
      raise ValueError("its pickle refers to something other than a storage")
    dtype = _DTYPES[storage].newbyteorder(self._byte_order)
    content = memoryview(self._read_entry(f"data/{key}"))
    num_bytes = size * dtype.itemsize
    if len(content) < num_bytes:
      raise ValueError(
        f"its storage {key} has {len(content)} bytes instead of {num_bytes}"
      )
    return _Storage(dtype, content[:num_bytes])


def _make_array(storage, offset, shape, strides):
  if not isinstance(storage, _Storage):
    raise ValueError("a tensor is not a view of a storage")
  dtype, content = storage.dtype, storage.content
  if not (
    isinstance(shape, tuple)
    and isinstance(strides, tuple)
    and len(shape) == len(strides) <= _MAX_AXES
    and all(type(x) is int and x >= 0 for x in (offset, *shape, *strides))
  ):
    raise ValueError("a tensor's offset, shape or strides are invalid")
  # NumPy's own check overflows, and strides of zero would allow huge arrays.
  capacity = len(content) // dtype.itemsize
  last = offset + sum(
    (size - 1) * stride for size, stride in zip(shape, strides, strict=True)
  )
  if 0 in shape:
    return np.ndarray(shape, dtype, content)
  if max(math.prod(shape), last + 1) > capacity:
    raise ValueError(f"a tensor of shape {shape} does not fit its storage")
  steps = [stride * dtype.itemsize for stride in strides]
  return np.ndarray(shape, dtype, content, offset * dtype.itemsize, steps)


def write(
  path: str | os.PathLike,
  tensors: Mapping[str, np.ndarray],
  root: str,
  record: str = "",
) -> None:
  """Writes `{root: tensors}` in the format of `torch.save`.

  Equal tensors are written as equal bytes. Torch ignores the entry with the
  record, which is written unless it is empty.

  Raises:
    WriteError: if the file cannot be written.
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
      # The date and system are fixed. Torch's default folder is "archive".
      entry = zipfile.ZipInfo(f"archive/{name}", (1980, 1, 1, 0, 0, 0))
      entry.create_system = 3
      archive.writestr(entry, content)
  write_file(path, file.getvalue())


def _dump(tensors, root):
  """Returns the pickle of `{root: tensors}` with storages "0", "1", ..."""
  parts = [b"\x80\x02}", _text(root), b"}("]
  for key, (name, array) in enumerate(tensors.items()):
    storage = _STORAGES[array.dtype.newbyteorder("=")]
    # Storages are written in C order; strides count elements.
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
