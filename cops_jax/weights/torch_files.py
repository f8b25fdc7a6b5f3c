"""Files in torch's zip format, in and out, without torch.

Such a file is a zip archive: `data.pkl`, a pickle of the containers, and one
entry for the bytes of each tensor storage.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from cops_jax.errors import InputError, shorten
from cops_jax.files import write_file
from cops_jax.weights import torch_pickles
from cops_jax.weights.torch_pickles import Module

# What the standard library and NumPy raise for malformed files.
_MALFORMED = (
  zipfile.BadZipFile,
  ArithmeticError,
  AttributeError,
  EOFError,
  LookupError,
  NotImplementedError,
  OSError,
  RuntimeError,
  TypeError,
  ValueError,
  struct.error,
)

# The pickle of the largest CLIP has some 300 kB.
_MAX_PICKLE_BYTES = 16 << 20
_MAX_NAME_LENGTH = 256

_RECORD = "record.json"


class TorchFile(NamedTuple):
  """What a file holds.

  Attributes:
    tensors: by dotted name; read-only.
    is_script: whether it is a TorchScript archive.
    record: of `write_tensors`, "" if there is none.
  """

  tensors: dict[str, np.ndarray]
  is_script: bool
  record: str


def read_tensors(path: str | os.PathLike) -> TorchFile:
  """Reads every tensor of a file from `torch.save` or `torch.jit.save`.

  Memory stays within a small multiple of the file's size, whatever the file
  claims.

  Raises:
    InputError: the file is damaged, in the format of torch before 1.6, or asks
      for anything but tensors and plain containers; nothing of it was run.
  """
  try:
    with open(path, "rb") as file:
      head = file.read(16)
      if not head.startswith(b"PK"):
        raise ValueError(_explain_head(head))
      with zipfile.ZipFile(file) as archive:
        return _read_archive(_Entries(archive, os.path.getsize(path)))
  except _MALFORMED as error:
    reason = str(error)
    # All but the messages of this module and of the operating system.
    if type(error) is not ValueError and not isinstance(error, OSError):
      reason = f"it is damaged or incomplete ({type(error).__name__}: {error})"
    raise InputError(
      f"{path} cannot be read as a torch file: {shorten(reason)}"
    ) from error


def _explain_head(head):
  if not head.startswith(b"\x80"):
    return "it is not a zip archive"
  return (
    "it is a bare pickle, as torch before 1.6 wrote it. Convert it once where"
    " torch is installed: torch.save(torch.load(FILE, map_location='cpu',"
    " weights_only=True), NEW_FILE)"
  )


class _Entries:
  """The entries of one archive, checked before any is read."""

  def __init__(self, archive, file_size):
    self._archive = archive
    # Entries of a hostile archive can share their bytes.
    self.num_bytes = sum(entry.compress_size for entry in archive.infolist())
    if self.num_bytes > file_size:
      raise ValueError(
        f"its entries claim {self.num_bytes} bytes, the file has {file_size}"
      )
    self._folder = next(
      (
        name.removesuffix("data.pkl")
        for name in archive.namelist()
        if name.count("/") == 1 and name.endswith("/data.pkl")
      ),
      None,
    )
    if self._folder is None:
      raise ValueError("it is a zip archive without a data.pkl")

  def find(self, name):
    try:
      return self._archive.getinfo(self._folder + name)
    except KeyError:
      return None

  def read(self, name, limit=None):
    entry = self.find(name)
    if entry is None:
      raise ValueError(f"its entry {name} is missing")
    # TorchScript compresses its code, which is not read, and nothing else.
    if entry.compress_type != zipfile.ZIP_STORED:
      raise ValueError(f"its entry {name} is compressed; torch stores it plain")
    if entry.file_size != entry.compress_size:
      raise ValueError(f"its entry {name} states two sizes")
    if limit is not None and entry.file_size > limit:
      raise ValueError(
        f"its entry {name} has {entry.file_size} bytes, more than {limit}"
      )
    return self._archive.read(entry)


def _read_archive(entries):
  byte_order = "<"
  if entries.find("byteorder"):
    byte_order = {b"little": "<", b"big": ">"}[entries.read("byteorder", 16)]
  root = torch_pickles.load(
    entries.read("data.pkl", _MAX_PICKLE_BYTES),
    lambda key: entries.read(f"data/{key}"),
    byte_order,
    # Tied weights are stored once and named twice.
    max_tensor_bytes=2 * entries.num_bytes,
  )
  record = ""
  if entries.find(_RECORD):
    record = entries.read(_RECORD, _MAX_PICKLE_BYTES).decode()
  return TorchFile(flatten_tensors(root), isinstance(root, Module), record)


def flatten_tensors(root):
  """Tensors by dotted name, from nested dictionaries, lists and modules.

  What is not a tensor is left out. A container met twice counts once.

  Raises:
    ValueError: two tensors share a name, or a name is too long.
  """
  if not isinstance(root, dict | Module):
    raise ValueError("it holds no dictionary of tensors")
  tensors, seen, waiting = {}, set(), [("", root)]
  while waiting:
    name, value = waiting.pop()
    if isinstance(value, np.ndarray):
      if name in tensors:
        raise ValueError(f"it holds two tensors of the name {name}")
      tensors[name] = value
      continue
    if isinstance(value, Module):
      value = value.attributes
    if isinstance(value, dict):
      items = value.items()
    elif isinstance(value, list | tuple):
      items = enumerate(value)
    else:
      continue
    if id(value) in seen:
      continue
    seen.add(id(value))
    children = []
    for key, child in items:
      if isinstance(child, np.ndarray | Module | dict | list | tuple):
        path = f"{name}.{key}" if name else str(key)
        if len(path) > _MAX_NAME_LENGTH:
          raise ValueError(
            f"a tensor's name is too long, above {_MAX_NAME_LENGTH} characters:"
            f" {path[:80]}..."
          )
        children.append((path, child))
    waiting += reversed(children)
  return tensors


def write_tensors(
  path: str | os.PathLike,
  tensors: Mapping[str, np.ndarray],
  root: str,
  record: str = "",
) -> None:
  """Writes `{root: tensors}` as `torch.save` does; `torch.load` reads it.

  The same input gives the same bytes.

  Args:
    path: of the file.
    tensors: by name.
    root: the one key of the outer dictionary.
    record: any text, in an entry that torch does not look at.
  """
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:

    def add(name, content):
      # A fixed date; the folder's name is torch's own default.
      entry = zipfile.ZipInfo(f"archive/{name}", (1980, 1, 1, 0, 0, 0))
      entry.create_system = 3
      archive.writestr(entry, content)

    add("data.pkl", torch_pickles.dump(tensors, root))
    add("byteorder", b"little")
    for key, array in enumerate(tensors.values()):
      little = array.dtype.newbyteorder("<")
      add(f"data/{key}", np.asarray(array, little, order="C").tobytes())
    add("version", b"3\n")
    if record:
      add(_RECORD, record.encode())
  write_file(path, file.getvalue())
