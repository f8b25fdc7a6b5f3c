"""Named tensors from a file of any format, read without running any of it."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import ml_dtypes
import msgpack
import numpy as np
from safetensors import SafetensorError, safe_open

from cops_jax import copies
from cops_jax.errors import InputError, shorten
from cops_jax.paths import is_address
from cops_jax.weights import torch_files

_HASH = "tensors' SHA-256: "  # Follows the record's text.
_FLAX_ARRAY = 1  # flax.serialization's extension type of arrays.


class TensorFile(NamedTuple):
  """What a file holds.

  Attributes:
    path: the file.
    format: a few words.
    tensors: by dotted name; read-only.
    record: text that this project wrote beside them, or "".
    sha256: of the file, in hexadecimal.
    content_sha256: of the tensors, as this project wrote it beside them, or "".
  """

  path: pathlib.Path
  format: str
  tensors: Mapping[str, np.ndarray]
  record: str
  sha256: str
  content_sha256: str = ""


def read_tensor_file(
  path: str | os.PathLike, expected_sha256: str = ""
) -> TensorFile:
  """Reads safetensors, torch's zip format or flax's msgpack, by content.

  Args:
    path: of the file; of one at an address a copy is read.
    expected_sha256: checked before anything is read; "" accepts any.

  Raises:
    InputError: the file cannot be read, has another hash, is of no such format
      or damaged, or asks for more than tensors and plain containers.
  """
  path = copies.fetch(path) if is_address(path) else pathlib.Path(path)
  try:
    with path.open("rb") as file:
      head = file.read(32)
      file.seek(0)
      sha256 = hashlib.file_digest(file, "sha256").hexdigest()
  except OSError as error:
    raise InputError(f"{path} cannot be read: {error.strerror}") from error
  if expected_sha256 and sha256 != expected_sha256.lower():
    raise InputError(
      f"{path} has the SHA-256 {sha256}; config.clip.sha256 expects"
      f" {expected_sha256}. Get the right file, or change the field if this is"
      " the one you want."
    )
  # Safetensors begins with the length of the JSON that follows. Its first bytes
  # may look like a zip file's or a pickle's; its last are 0, unlike theirs.
  is_torch = head.startswith((b"PK", b"\x80")) and head[4:9] != b"\0\0\0\0{"
  if is_torch:
    tensors, is_script, record = torch_files.read_tensors(path)
    name = "TorchScript archive" if is_script else "torch"
    return TensorFile(path, name, tensors, record, sha256)
  if head[8:9] == b"{":
    tensors, text = _read_safetensors(path)
    record, _, content_sha256 = text.partition(_HASH)
    return TensorFile(
      path, "safetensors", tensors, record, sha256, content_sha256
    )
  # A msgpack map: a flax tree of parameters.
  if head[:1] and (0x80 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)):
    return TensorFile(path, "flax msgpack", _read_msgpack(path), "", sha256)
  pointer = b"version https://git-lfs"
  reason = "it is cut off or of another format"
  if head.startswith(pointer):
    reason = "it is a Git LFS pointer; fetch the file itself: git lfs pull"
  raise InputError(
    f"{path} is neither safetensors nor torch's zip format nor flax's msgpack:"
    f" {reason}"
  )


def add_hash(record: str, content_sha256: str) -> str:
  """A record's text with the hash of the tensors that it is beside."""
  return f"{record}{_HASH}{content_sha256}"


def check_tensors(
  tensors: Mapping[str, np.ndarray],
  shapes: Mapping[str, tuple[int, ...]],
  source: str,
) -> None:
  """Checks that tensors are floats of just these names and shapes.

  Raises:
    InputError: naming every missing, unexpected and misshapen tensor at once;
      begins with `source`.
  """
  problems = []
  for name, shape in shapes.items():
    array = tensors.get(name)
    if array is None:
      problems.append(f"missing: {name}")
    elif array.shape != tuple(shape):
      problems.append(f"shape of {name}: {array.shape}, expected {shape}")
    elif array.dtype.kind != "f" and array.dtype != ml_dtypes.bfloat16:
      problems.append(f"type of {name}: {array.dtype}, expected a float")
  problems += [
    f"unexpected: {name}" for name in sorted(set(tensors) - set(shapes))
  ]
  if problems:
    raise InputError(
      f"{source}:" + "".join(f"\n  {problem}" for problem in problems)
    )


def _read_safetensors(path):
  try:
    with safe_open(path, framework="numpy") as file:
      tensors = {name: file.get_tensor(name) for name in file.keys()}
      return tensors, (file.metadata() or {}).get("record", "")
  except (
    SafetensorError,
    OSError,
    TypeError,
    ValueError,
    LookupError,
  ) as error:
    raise InputError(
      f"{path} is not a whole safetensors file: {shorten(error)}"
    ) from error


def _read_msgpack(path):
  try:
    tree = msgpack.unpackb(
      path.read_bytes(),
      ext_hook=_decode_array,
      # A list is allocated before it is read. flax has only that of an array's
      # three parts.
      max_array_len=64,
    )
    return torch_files.flatten_tensors(tree)
  except (
    msgpack.UnpackException,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
  ) as error:
    raise InputError(
      f"{path} is not a whole file of flax parameters: {shorten(error)}"
    ) from error


def _decode_array(code, content):
  if code != _FLAX_ARRAY:
    raise ValueError(f"it holds an object of msgpack extension type {code}")
  shape, dtype, buffer = msgpack.unpackb(content, max_array_len=64)
  dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
  if dtype.kind not in "biuf" and dtype != ml_dtypes.bfloat16:
    raise ValueError(f"it holds an array of {dtype}")
  return np.frombuffer(buffer, dtype).reshape(shape)
