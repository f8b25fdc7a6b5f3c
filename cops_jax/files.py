"""Files that are written whole or not at all, and that show a change."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import re
import stat
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from cops_jax.errors import WriteError

_SEAL = "sha256"


def require_local(path: pathlib.Path) -> None:
  """Raises WriteError for an address such as gs://bucket/run."""
  scheme = re.match(r"([a-z][a-z0-9]+):/", str(path))
  if scheme:
    raise WriteError(
      f"{path} cannot be written: {scheme[1]}: addresses are not supported;"
      " give a local path"
    )


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives a path to write to, which becomes the file once all is written.

  Makes the folders above it. If processes, on any hosts, write one path at the
  same time, the last one wins.

  Raises:
    WriteError: it cannot be written.
  """
  require_local(path)
  partial = path.parent / f".{uuid.uuid4().hex}.partial"
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      yield partial
      sync(partial)
      os.replace(partial, path)
    finally:
      partial.unlink(missing_ok=True)
  except OSError as error:
    reason = error.strerror or error
    raise WriteError(f"{path} cannot be written: {reason}") from error


def sync(path: pathlib.Path) -> None:
  """Waits until a file, or a folder's list of files, is on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def write_file(path: pathlib.Path, content: str | bytes) -> None:
  """Writes a file and the folders above it; a reader never sees a part.

  Raises:
    WriteError: it cannot be written.
  """
  with whole_file(path) as partial:
    partial.write_bytes(
      content.encode() if isinstance(content, str) else content
    )


def digest_file(file: bytes | pathlib.Path, may_remember: bool = False) -> str:
  """SHA-256 of a file's bytes, in hexadecimal; "unreadable" if it is that.

  Args:
    file: its path, or its bytes.
    may_remember: whether to read it once, as long as its size and time stay.
  """
  if isinstance(file, bytes):
    return hashlib.sha256(file).hexdigest()
  try:
    state = os.stat(file)
    if stat.S_ISREG(state.st_mode):  # A pipe would be waited for.
      digest = _remember_digest if may_remember else _digest_path
      return digest(file, state.st_size, state.st_mtime_ns)
  except OSError:  # Whoever needs its content says what is wrong.
    pass
  return "unreadable"


def _digest_path(path, *_):
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


_remember_digest = functools.lru_cache(2**17)(_digest_path)


def seal(values: Mapping[str, Any], indent: int | None = None) -> str:
  """A dictionary of JSON's types as text that has its own SHA-256 in it."""
  sealed = {**values, _SEAL: _digest(values)}
  return json.dumps(sealed, indent=indent) + "\n"


def unseal(text: str | bytes) -> dict[str, Any]:
  """The inverse of `seal`; text of earlier versions may have no SHA-256.

  Raises:
    ValueError: it is not the text of a dictionary, or it was changed since.
  """
  try:
    values = json.loads(text)
  except RecursionError as error:
    raise ValueError("it is nested too deeply") from error
  if not isinstance(values, dict):
    raise ValueError(f"it holds a {type(values).__name__}, not a dictionary")
  digest = values.pop(_SEAL, None)
  if digest is not None and digest != _digest(values):
    raise ValueError("it was changed since it was written: its SHA-256 differs")
  return values


def _digest(values):
  # As it will be read: tuples become lists, for one.
  text = json.dumps(json.loads(json.dumps(values)), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()
