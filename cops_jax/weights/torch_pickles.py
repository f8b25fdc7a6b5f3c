"""The pickle inside a torch file, interpreted instead of unpickled.

A pickle is a program. This interpreter follows the few instructions that
tensors and plain containers need; it imports nothing and calls nothing.
Whatever else a pickle asks for is refused by name.

`pickle.Unpickler` with stubs for names is no shorter: its dictionaries hash any
key, and nested tuples for keys end the process or take forever. It allocates by
numbers of the file, sets attributes that the file names, and drops values.
"""

from __future__ import annotations

import functools
import math
import pickletools
import struct
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

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

_ORDERED_DICT = "collections.OrderedDict"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
# TorchScript's classes: names without code here, holders of attributes.
_SCRIPT_CLASS = "__torch__."
# TorchScript's typed lists: the list is their first argument.
_SCRIPT_VALUES = (
  "torch.jit._pickle.build_boollist",
  "torch.jit._pickle.build_doublelist",
  "torch.jit._pickle.build_intlist",
  "torch.jit._pickle.build_tensorlist",
  "torch.jit._pickle.restore_type_tag",
)
_GLOBALS = (
  _ORDERED_DICT,
  _TENSOR,
  _PARAMETER,
  *_SCRIPT_VALUES,
  *(f"torch.{storage}" for storage in _DTYPES),
)

_MAX_DIMENSIONS = 32


def load(
  stream: bytes,
  read_storage: Callable[[str], bytes],
  byte_order: str,
  max_tensor_bytes: int,
) -> Any:
  """The dictionaries, lists, tuples, modules and arrays of a pickle.

  Args:
    stream: the pickle.
    read_storage: from the key of a tensor storage to its bytes.
    byte_order: of the storages, "<" or ">".
    max_tensor_bytes: that all tensors may have together, seen one by one:
      several may share a storage.

  Raises:
    ValueError: it asks for something else, or for too much.
    Others of the standard library: it is damaged.
  """
  interpreter = _Interpreter(read_storage, byte_order, max_tensor_bytes)
  with warnings.catch_warnings():
    # pickletools decodes a damaged string's escapes.
    warnings.simplefilter("ignore", DeprecationWarning)
    for opcode, argument, _ in pickletools.genops(stream):
      if opcode.name in ("GLOBAL", "INST"):
        _admit(argument.replace(" ", "."))
    # One byte of a pickle can ask for an object of many. Real pickles stay well
    # below this share.
    return interpreter.run(stream, max_object_bytes=65536 + 32 * len(stream))


class _Global(NamedTuple):
  """A name that a pickle asks for; never looked up."""

  name: str


class Module:
  """An object of a TorchScript class: its attributes alone."""

  __slots__ = ("attributes",)

  def __init__(self):
    self.attributes = {}


class _Storage(NamedTuple):
  dtype: np.dtype
  key: str
  size: int


_MARK = object()


class _Interpreter:
  """Follows a pickle's instructions with values of its own."""

  def __init__(self, read_storage, byte_order, max_tensor_bytes):
    self._read_storage = functools.cache(read_storage)
    self._byte_order = byte_order
    self._tensor_bytes = max_tensor_bytes
    self._stack = []
    self._memo = {}

  def run(self, stream, max_object_bytes):
    self._object_bytes = self._max_object_bytes = max_object_bytes
    for opcode, argument, _ in pickletools.genops(stream):
      if opcode.name == "STOP":
        if len(self._stack) != 1:
          raise ValueError(f"its pickle ends with {len(self._stack)} values")
        return self._stack[0]
      self._step(opcode.name, argument)
    raise ValueError("its pickle has no end")

  def _step(self, opcode, argument):
    stack = self._stack
    match opcode:
      case "PROTO" | "FRAME":
        pass
      case "MARK":
        stack.append(_MARK)
      case "NONE":
        stack.append(None)
      case "NEWTRUE" | "NEWFALSE":
        stack.append(opcode == "NEWTRUE")
      case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
        stack.append(argument)
      case "BINUNICODE" | "SHORT_BINUNICODE":
        stack.append(argument)
      case "EMPTY_DICT" | "EMPTY_LIST":
        self._spend(64)
        stack.append({} if opcode == "EMPTY_DICT" else [])
      case "EMPTY_TUPLE":
        stack.append(())
      case "TUPLE":
        self._push_tuple(self._pop_to_mark())
      case "TUPLE1" | "TUPLE2" | "TUPLE3":
        count = int(opcode[-1])
        self._push_tuple([stack.pop() for _ in range(count)][::-1])
      case "APPEND":
        item = stack.pop()
        self._extend([item])
      case "APPENDS":
        self._extend(self._pop_to_mark())
      case "SETITEM":
        value, key = stack.pop(), stack.pop()
        self._set_items([key, value])
      case "SETITEMS":
        self._set_items(self._pop_to_mark())
      case "BINPUT" | "LONG_BINPUT":
        self._spend(112)
        self._memo[argument] = stack[-1]
      case "MEMOIZE":
        self._spend(112)
        self._memo[len(self._memo)] = stack[-1]
      case "BINGET" | "LONG_BINGET":
        stack.append(self._memo[argument])
      case "GLOBAL":
        stack.append(_admit(argument.replace(" ", ".")))
      case "STACK_GLOBAL":
        name, module = stack.pop(), stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
          raise ValueError(f"it asks for a {_kind(name)} by name")
        stack.append(_admit(f"{module}.{name}"))
      case "REDUCE" | "NEWOBJ":
        arguments, function = stack.pop(), stack.pop()
        stack.append(self._build(opcode, function, arguments))
      case "BUILD":
        state, target = stack.pop(), stack[-1]
        # An OrderedDict's attributes are torch's notes on versions.
        if isinstance(target, Module) and isinstance(state, dict):
          target.attributes = state
        elif not isinstance(target, dict):
          raise ValueError(f"it sets the state of a {_kind(target)}")
      case "BINPERSID":
        stack.append(self._find_storage(stack.pop()))
      case _:
        raise ValueError(f"its pickle has the instruction {opcode}")

  def _spend(self, num_bytes):
    self._object_bytes -= num_bytes
    if self._object_bytes < 0:
      raise ValueError(
        "its pickle asks for too many objects: they need more than"
        f" {self._max_object_bytes} bytes"
      )

  def _pop_to_mark(self):
    items = []
    while (item := self._stack.pop()) is not _MARK:
      items.append(item)
    return items[::-1]

  def _push_tuple(self, items):
    self._spend(48 + 8 * len(items))
    self._stack.append(tuple(items))

  def _extend(self, items):
    if not isinstance(self._stack[-1], list):
      raise ValueError(f"it appends to a {_kind(self._stack[-1])}")
    self._stack[-1].extend(items)

  def _set_items(self, items):
    target = self._stack[-1]
    if not isinstance(target, dict):
      raise ValueError(f"it sets items of a {_kind(target)}")
    if len(items) % 2:
      raise ValueError("it sets a key without a value")
    self._spend(50 * len(items))
    for key, value in zip(items[::2], items[1::2], strict=True):
      if isinstance(key, int):
        # Numbers can be chosen to share a hash; texts cannot. A dictionary of
        # many such takes hours.
        self._spend(56)
        key = str(key)
      elif not isinstance(key, str):
        raise ValueError(f"a dictionary has a {_kind(key)} for a key")
      if key in target:
        raise ValueError(f"a dictionary has two keys {key[:80]}")
      target[key] = value

  def _build(self, opcode, function, arguments):
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
      raise ValueError(f"it calls a {_kind(function)}")
    self._spend(256)
    name = function.name
    if name.startswith(_SCRIPT_CLASS) and opcode == "NEWOBJ":
      return Module()
    if name == _ORDERED_DICT and not arguments:
      return {}
    if name == _TENSOR:
      return self._build_tensor(*arguments[:4])
    if name == _PARAMETER or name in _SCRIPT_VALUES:
      return arguments[0]
    raise ValueError(f"it calls {name} with {len(arguments)} arguments")

  def _find_storage(self, reference):
    tag, kind, key, _, size = reference
    storage = kind.name.removeprefix("torch.")
    if tag != "storage" or not isinstance(key, str):
      raise ValueError(f"it refers to a {_kind(tag)} instead of a storage")
    return _Storage(_DTYPES[storage], key, _check_integers([size])[0])

  def _build_tensor(self, storage, offset, shape, strides):
    if not isinstance(storage, _Storage):
      raise ValueError(f"a tensor is made from a {_kind(storage)}")
    _check_integers([offset, *shape, *strides])
    if len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
      raise ValueError(
        f"a tensor has {len(shape)} dimensions and {len(strides)} strides"
      )
    elements = self._storage_elements(storage)
    count = math.prod(shape)
    last = offset + sum(
      (size - 1) * stride for size, stride in zip(shape, strides, strict=True)
    )
    # Strides of zero would make much out of little.
    if count > storage.size or (count and last >= storage.size):
      raise ValueError(
        f"a tensor of shape {shape} does not fit its storage {storage.key} of"
        f" {storage.size} elements"
      )
    self._tensor_bytes -= count * elements.itemsize
    if self._tensor_bytes < 0:
      raise ValueError("its tensors overlap; together they exceed the file")
    if not count:
      return elements[:0].reshape(shape)
    return np.lib.stride_tricks.as_strided(
      elements[offset:],
      shape,
      [stride * elements.itemsize for stride in strides],
      writeable=False,
    )

  def _storage_elements(self, storage):
    content = self._read_storage(storage.key)
    dtype = storage.dtype.newbyteorder(self._byte_order)
    if len(content) < storage.size * dtype.itemsize:
      raise ValueError(
        f"its storage {storage.key} has {len(content)} bytes instead of"
        f" {storage.size * dtype.itemsize}"
      )
    return np.frombuffer(content, dtype, storage.size)


def _admit(name):
  if name not in _GLOBALS and not name.startswith(_SCRIPT_CLASS):
    raise ValueError(
      f"it asks for {name[:200]}. Only tensors and plain containers are read;"
      " nothing of it was run"
    )
  return _Global(name)


def _kind(value):
  return type(value).__name__.lstrip("_").lower()


def _check_integers(values):
  for value in values:
    if type(value) is not int or not 0 <= value < 2**62:
      raise ValueError("a tensor's shape is not made of natural numbers")
  return values


def dump(tensors: Mapping[str, np.ndarray], root: str) -> bytes:
  """The pickle of `{root: tensors}`; the storages' keys are "0", "1", ..."""
  parts = [b"\x80\x02}", _text(root), b"}("]
  for key, (name, array) in enumerate(tensors.items()):
    storage = _STORAGES[array.dtype.newbyteorder("=")]
    # In elements, of the C order that storages are written in.
    strides = [math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
    parts += [_text(name), _name(_TENSOR), b"(("]
    parts += [_text("storage"), _name(f"torch.{storage}"), _text(str(key))]
    parts += [_text("cpu"), _integers([array.size]), b"tQ", _integers([0])]
    parts += [b"(", _integers(array.shape), b"t(", _integers(strides), b"t"]
    parts += [b"\x89", _name(_ORDERED_DICT), b")RtR"]
  return b"".join([*parts, b"us."])


def _text(value):
  encoded = value.encode()
  return b"X" + struct.pack("<I", len(encoded)) + encoded


def _name(value):
  module, _, attribute = value.rpartition(".")
  return f"c{module}\n{attribute}\n".encode()


def _integers(values):
  return b"".join(b"J" + struct.pack("<i", value) for value in values)
