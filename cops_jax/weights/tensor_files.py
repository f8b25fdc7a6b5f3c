"""Reads named tensors from files of several formats without running code."""

from __future__ import annotations

import hashlib
import logging
import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import flax.serialization
import ml_dtypes
import numpy as np
from safetensors import safe_open

from cops_jax.errors import InputError, shorten
from cops_jax.files import fetch
from cops_jax.paths import is_address
from cops_jax.progress import gigabytes
from cops_jax.weights import torch_files

_logger = logging.getLogger(__name__)

HASH = "tensors' SHA-256: "  # Separates a record from the hash of its tensors.
_LARGE_BYTES = 4e9  # Reading takes seconds, so a log line announces it.


class TensorFile(NamedTuple):
  """Contents of a file of tensors.

  Attributes:
    path: path of the file.
    format: name of the format.
    tensors: read-only arrays by dotted name.
    record: record that this project wrote into the file; empty if none.
    sha256: SHA-256 of the file, in hexadecimal.
    content_sha256: SHA-256 of the tensors that this project wrote into the
      file; empty if none.
  """

  path: pathlib.Path
  format: str
  tensors: Mapping[str, np.ndarray]
  record: str
  sha256: str
  content_sha256: str


def read_tensor_file(
  path: str | os.PathLike, expected_sha256: str = ""
) -> TensorFile:
  """Reads safetensors, torch's zip format or flax's msgpack.

  The file's content decides its format.

  Args:
    path: path or address of the file.
    expected_sha256: hash to compare before the tensors are read; empty accepts
      any file.

  Raises:
    InputError: if the file cannot be read, has another hash, is damaged or of
      another format, or contains more than tensors and plain containers.
  """
  path = fetch(path) if is_address(path) else pathlib.Path(path)
  try:
    with path.open("rb") as file:
      name, read = _find_format(file.read(32), path)
      if read is _read_safetensors:
        _read(path, name, _check_header)
      size = file.seek(0, os.SEEK_END)
      if size > _LARGE_BYTES:
        _logger.info("reading %s, %s", path, gigabytes(size))
      file.seek(0)
      sha256 = hashlib.file_digest(file, "sha256").hexdigest()
  except OSError as error:
    raise InputError(f"{path} cannot be read: {error.strerror}") from error
  if expected_sha256 and sha256 != expected_sha256.lower():
    raise InputError(
      f"{path} has the SHA-256 {sha256}, but config.backbone.sha256 is"
      f" {expected_sha256}. Get that file, or change the field to use this one."
    )
  root, text, tensors = _read(path, name, read)
  if isinstance(root, torch_files.Module):
    name = "TorchScript archive"
  record, _, content_sha256 = text.partition(HASH)
  return TensorFile(path, name, tensors, record, sha256, content_sha256)


def _read(path, name, read):
  """Returns a file's root container, its record and its tensors by name."""
  try:
    root, text = read(path)
    return root, text, _flatten(root)
  except Exception as error:  # Damaged files fail in many ways.
    reason = str(error)
    if type(error) is not ValueError:  # A ValueError explains itself.
      kind = type(error).__name__
      reason = f"it is damaged or incomplete ({kind}: {error}); get a new copy"
    raise InputError(
      f"{path} cannot be read as a {name} file: {shorten(reason)}"
    ) from error


def _find_format(head, path):
  """Returns the name of a file's format, and the function that reads it."""
  # Safetensors begins with the length of its JSON in eight bytes. The first
  # bytes can look like a zip file or a pickle, but only here the last are 0.
  if head[8:9] == b"{" and head[4:8] == bytes(4):
    return "safetensors", _read_safetensors
  if head.startswith(b"PK"):
    return "torch", torch_files.read
  # Flax writes a tree of parameters as a msgpack map.
  if head[:1] > b"\x80" and (head[0] <= 0x8F or head[0] in (0xDE, 0xDF)):
    return "flax msgpack", _read_msgpack
  reason = "it is cut off or has another format"
  if head.startswith(b"\x80"):
    reason = (
      "it is a bare pickle, which torch before 1.6 wrote. Convert it on a"
      " machine with torch: torch.save(torch.load(FILE, map_location='cpu',"
      " weights_only=True), NEW_FILE)"
    )
  if head.startswith(b"version https://git-lfs"):
    reason = "it is a Git LFS pointer; get the file itself with `git lfs pull`"
  raise InputError(
    f"{path} is neither safetensors nor torch's zip format nor flax's msgpack:"
    f" {reason}"
  )


def check_tensors(
  tensors: Mapping[str, np.ndarray],
  shapes: Mapping[str, tuple[int, ...]],
  source: str,
) -> None:
  """Checks that tensors are floats with exactly these names and shapes.

  Args:
    tensors: arrays by name.
    shapes: expected shapes by name.
    source: beginning of an error's message, which names the file.

  Raises:
    InputError: if tensors are missing, unexpected or of another shape or type.
      The message lists all of them.
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


def _flatten(root):
  """Returns the arrays in nested containers by dotted name.

  A container that occurs several times counts once.
  """
  tensors, seen = {}, set()

  def visit(value, name):
    if isinstance(value, torch_files.Module):
      value = value.attributes
    if isinstance(value, np.ndarray):
      if not name.isprintable():  # It could contain commands to a terminal.
        raise ValueError(f"the name of a tensor is not printable: {name!r}")
      if name in tensors:
        raise ValueError(f"two of its tensors have the name {name}")
      tensors[name] = value
    if not isinstance(value, dict | list | tuple) or id(value) in seen:
      return
    seen.add(id(value))
    is_dict = isinstance(value, dict)
    for key, child in value.items() if is_dict else enumerate(value):
      if not isinstance(key, str | int):
        raise ValueError(f"a dictionary has a {type(key).__name__} as a key")
      visit(child, f"{name}.{key}" if name else str(key))

  if not isinstance(root, dict | torch_files.Module):
    raise ValueError("it contains no dictionary of tensors")
  visit(root, "")
  return tensors


def _check_header(path):
  """Compares sizes in the header with the file's size; reads no tensor."""
  with safe_open(path, framework="numpy"):
    return {}, ""


def _read_safetensors(path):
  with safe_open(path, framework="numpy") as file:
    tensors = {name: file.get_tensor(name) for name in file.keys()}
    return tensors, (file.metadata() or {}).get("record", "")


def _read_msgpack(path):
  return flax.serialization.msgpack_restore(path.read_bytes()), ""
