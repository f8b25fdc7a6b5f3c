"""Files, on local disks and in buckets: whole or not at all, and sealed."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cops_jax import buckets
from cops_jax.errors import WriteError
from cops_jax.paths import AnyPath, is_address, to_path

_SEAL = "sha256"


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Gives a local path to write to, which becomes the file once all is written.

  Makes the folders above it. If processes, on any hosts, write one path at the
  same time, the last one wins.

  Raises:
    WriteError: it cannot be written.
  """
  try:
    with contextlib.ExitStack() as stack:
      if is_address(path):
        to_path(path)  # It may be none that can be used.
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        partial = pathlib.Path(folder, "file")
      else:
        path = pathlib.Path(path)
        partial = path.parent / f".{uuid.uuid4().hex}.partial"
        path.parent.mkdir(parents=True, exist_ok=True)
        stack.callback(partial.unlink, missing_ok=True)
      yield partial
      if is_address(path):
        buckets.upload(partial, path)
      else:
        sync(partial)
        os.replace(partial, path)
  except OSError as error:
    raise WriteError(
      f"{path} cannot be written: {error.strerror or error}"
    ) from error


def sync(path: pathlib.Path) -> None:
  """Waits until a file, or a folder's list of files, is on the disk."""
  if os.name == "nt" and path.is_dir():
    return  # Windows opens no folders.
  # Windows syncs only what is open for writing.
  flags = os.O_RDONLY if path.is_dir() else os.O_RDWR
  descriptor = os.open(path, flags)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def write_file(path: str | os.PathLike, content: str | bytes) -> None:
  """Writes a file and the folders above it; a reader never sees a part.

  Raises:
    WriteError: it cannot be written.
  """
  content = content.encode() if isinstance(content, str) else content
  with whole_file(path) as partial:
    partial.write_bytes(content)


def read_file(path: str | os.PathLike) -> bytes:
  """A file's content.

  Raises:
    OSError: it cannot be read.
  """
  if is_address(path):
    return buckets.read(path)
  return pathlib.Path(path).read_bytes()


def exists(path: str | os.PathLike) -> bool:
  """Whether there is a file or a folder.

  Raises:
    OSError: a bucket's server does not say.
  """
  return bool(buckets.kind(path)) if is_address(path) else os.path.exists(path)


def is_file(path: str | os.PathLike) -> bool:
  """Whether there is a file.

  Raises:
    OSError: a bucket's server does not say.
  """
  if is_address(path):
    return buckets.kind(path) == "file"
  return os.path.isfile(path)


def size_of(path: str | os.PathLike) -> int:
  """Bytes of a file.

  Raises:
    OSError: there is none, or a bucket's server does not say.
  """
  if is_address(path):
    return buckets.find_files(path)[""].size
  return os.path.getsize(path)


def find_files(path: str | os.PathLike) -> dict[str, int]:
  """All files below a folder, sorted: sizes by names from it on.

  None if there is no folder.

  Raises:
    OSError: a bucket's server does not say.
  """
  if is_address(path):
    found = buckets.find_files(path)
    return {name: file.size for name, file in found.items()}
  root = pathlib.Path(path)
  return {
    file.relative_to(root).as_posix(): file.stat().st_size
    for file in sorted(root.rglob("*"))
    if file.is_file()
  }


def delete(path: str | os.PathLike) -> None:
  """Deletes a file or a folder with all that is in it; it may not exist.

  Raises:
    OSError: it cannot be deleted.
  """
  if is_address(path):
    buckets.delete(path)
  elif os.path.isdir(path):
    shutil.rmtree(path)
  else:
    pathlib.Path(path).unlink(missing_ok=True)


def rename(path: AnyPath, to: AnyPath) -> None:
  """Renames a folder; in a bucket its files are copied and deleted.

  Raises:
    OSError: it cannot be renamed.
  """
  (buckets.rename if is_address(path) else os.rename)(path, to)


def digest_lines(lines: Iterable[str]) -> str:
  """Returns one SHA-256 of lines of text, in hexadecimal."""
  digest = hashlib.sha256()
  for line in lines:
    # Names of files may hold bytes that are not UTF-8.
    digest.update(f"{line}\n".encode(errors="backslashreplace"))
  return digest.hexdigest()


def file_state(file: bytes | pathlib.Path) -> str:
  """Returns a file's size and time; `digest_file` of bytes."""
  if isinstance(file, bytes):
    return digest_file(file)
  try:
    state = os.stat(file)
  except OSError:
    return "unreadable"
  return f"{state.st_size} {state.st_mtime_ns}"


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
