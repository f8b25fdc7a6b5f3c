"""Files on local disks and in buckets: atomic writes, and sealed JSON.

A bucket has no folders: a folder exists while some file's name begins with it.
Functions raise OSError with a reason and the path, unless their docstring names
another error.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import pathlib
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from cops_jax.errors import InputError, WriteError, shorten
from cops_jax.paths import is_address, to_path

_logger = logging.getLogger(__name__)

_SEAL = "sha256"


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields a local path to write to, and moves the file to `path` at the end.

  Missing folders are created. If several processes on any hosts write the same
  path at the same time, the last one wins.

  Raises:
    WriteError: if the file cannot be written.
  """
  path = to_path(path)
  with _raise_write_errors(path), contextlib.ExitStack() as stack:
    if is_address(path):
      folder = stack.enter_context(tempfile.TemporaryDirectory())
      partial = pathlib.Path(folder, "file")
    else:
      partial = path.parent / f".{uuid.uuid4().hex}.partial"
      path.parent.mkdir(parents=True, exist_ok=True)
      stack.callback(partial.unlink, missing_ok=True)
    yield partial
    if is_address(path):
      with _open_bucket(path, is_writing=True) as (bucket, name):
        bucket.put_file(os.fspath(partial), name)
    else:
      sync(partial)
      os.replace(partial, path)


@contextlib.contextmanager
def _raise_write_errors(path):
  try:
    yield
  except OSError as error:
    raise WriteError(
      f"{path} cannot be written: {error.strerror or error}"
    ) from error


def sync(path: pathlib.Path) -> None:
  """Waits until a file is on the disk."""
  with path.open("r+b") as file:  # Windows syncs only files open for writing.
    os.fsync(file.fileno())


def write_file(path: str | os.PathLike, content: str | bytes) -> None:
  """Writes a file and the folders above it; readers never see a partial file.

  Raises:
    WriteError: if the file cannot be written.
  """
  content = content.encode() if isinstance(content, str) else content
  if not is_address(path):
    with whole_file(path) as partial:
      partial.write_bytes(content)
    return
  # A killed process would leave a temporary file behind, so there is none.
  with (
    _raise_write_errors(path),
    _open_bucket(to_path(path), is_writing=True) as (bucket, name),
  ):
    bucket.pipe_file(name, content)


def create_file(path: str | os.PathLike, content: bytes) -> None:
  """Writes a new file; only one of several processes succeeds.

  Raises:
    FileExistsError: if the file exists.
  """
  if not is_address(path):
    with to_path(path).open("xb") as file:
      file.write(content)
    return
  with _open_bucket(path, is_writing=True) as (bucket, name):
    bucket.pipe_file(name, content, mode="create")


def read_file(path: str | os.PathLike) -> bytes:
  """Returns a file's content."""
  if not is_address(path):
    return to_path(path).read_bytes()
  with _open_bucket(path) as (bucket, name):
    return bucket.cat_file(name)


def exists(path: str | os.PathLike) -> bool:
  """Returns whether a path is a file or a folder."""
  if is_address(path):
    return bool(_find_kind(path))
  return os.path.exists(to_path(path))


def is_file(path: str | os.PathLike) -> bool:
  """Returns whether a path is a file."""
  if is_address(path):
    return _find_kind(path) == "file"
  return os.path.isfile(to_path(path))


def _find_kind(address):
  try:
    with _open_bucket(address) as (bucket, name):
      return bucket.info(name)["type"]
  except FileNotFoundError:
    return ""


def size_of(path: str | os.PathLike) -> int:
  """Returns the size of a file in bytes."""
  if is_address(path):
    return find_files(path)[""]
  return os.path.getsize(to_path(path))


def find_files(path: str | os.PathLike) -> dict[str, int]:
  """Returns the sizes of all files below a folder, by relative name, sorted.

  The result is empty if the folder does not exist. A path that is a file in a
  bucket has the name "".
  """
  if is_address(path):
    return {name: info["size"] for name, info in _find_in_bucket(path).items()}
  found, path = {}, to_path(path)
  for folder, _, names in os.walk(path):
    for name in names:
      file = pathlib.Path(folder, name)
      # Another process can delete files meanwhile.
      with contextlib.suppress(FileNotFoundError):
        found[file.relative_to(path).as_posix()] = file.stat().st_size
  return dict(sorted(found.items()))


def _find_in_bucket(address):
  with _open_bucket(address) as (bucket, root):
    found = sorted(bucket.find(root, detail=True).items())
    return {
      name.removeprefix(root).removeprefix("/"): info
      for name, info in found
      if not name.endswith("/")  # Empty files that mark folders.
    }


def rename(path: str | os.PathLike, to: str | os.PathLike) -> None:
  """Renames a folder; in a bucket, copies and deletes its files."""
  if not is_address(path):
    os.rename(to_path(path), to_path(to))
    return
  with _open_bucket(path) as (bucket, root):
    for name in _find_in_bucket(path):
      bucket.cp_file(f"{root}/{name}", f"{os.fspath(to)}/{name}")
  delete(path)


def delete(path: str | os.PathLike) -> None:
  """Deletes a file, or a folder with its contents, if it exists."""
  with contextlib.suppress(FileNotFoundError):
    if is_address(path):
      with _open_bucket(path) as (bucket, name):
        bucket.rm(name, recursive=True)
    elif os.path.isdir(path := to_path(path)):
      shutil.rmtree(path)
    else:
      os.unlink(path)


def fetch(
  address: str | os.PathLike,
  choose: Callable[[Collection[str]], Collection[str]] | None = None,
) -> pathlib.Path:
  """Returns a local copy of a file or folder in a bucket.

  The copy is in the user's cache (XDG_CACHE_HOME moves it) under a hash of the
  files' sizes and checksums. All files are copied again when one changes.

  Args:
    address: gs:// address of the file or folder.
    choose: function from the names of a folder's files to those to copy; None
      copies all.

  Raises:
    InputError: if the address does not exist or cannot be copied.
  """
  import filelock
  import pooch

  try:
    found = _find_in_bucket(address)
    if not found:
      raise InputError(f"{address} does not exist; check the address")
    names = choose(found) if choose and "" not in found else list(found)
    state = [(name, found[name]["size"], found[name]["etag"]) for name in names]
    key = hashlib.sha256(f"{address} {sorted(state)}".encode()).hexdigest()[:16]
    place = pathlib.Path(pooch.os_cache("cops_jax"), "copies", key)
    copy = place / pathlib.PurePosixPath(address).name
    place.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{place}.lock"):  # For processes on this host.
      if not place.exists():
        size = sum(found[name]["size"] for name in names)
        _logger.info("copying %s, %.3g MB, to %s", address, size / 1e6, copy)
        partial = pathlib.Path(f"{place}.partial", copy.name)
        with _open_bucket(address) as (bucket, root):
          for name in names:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            source = f"{root}/{name}" if name else root
            bucket.get_file(source, os.fspath(partial / name))
        partial.parent.rename(place)
  except OSError as error:
    raise InputError(
      f"{address} cannot be copied to this host: {error.strerror or error}"
    ) from error
  return copy


@contextlib.contextmanager
def _open_bucket(address, is_writing=False):
  """Yields gcsfs and an address's name in it; turns all errors into OSError."""
  to_path(address)  # Raises InputError for an unsupported address.
  import fsspec

  try:
    yield fsspec.core.url_to_fs(os.fspath(address))
  except Exception as error:  # gcsfs raises many types.
    code, reason = errno.EIO, _explain(error)
    if isinstance(error, FileExistsError):
      code, reason = errno.EEXIST, os.strerror(errno.EEXIST)
    elif isinstance(error, FileNotFoundError) and is_writing:
      reason = "the bucket does not exist"
    elif isinstance(error, FileNotFoundError):
      code, reason = errno.ENOENT, os.strerror(errno.ENOENT)
    raise OSError(code, reason, os.fspath(address)) from error


def _explain(error):
  text, code = " ".join(str(error).split()), str(getattr(error, "code", ""))
  if code == "401" or type(error).__module__.startswith("google.auth"):
    return (
      "there are no valid credentials. Run `gcloud auth application-default"
      " login`, or set GOOGLE_APPLICATION_CREDENTIALS to the key file of a"
      f" service account ({shorten(text)})"
    )
  if code == "403" or text.startswith("Forbidden"):
    return f"this account lacks the permission ({shorten(text)})"
  return shorten(text or error)


def digest_lines(lines: Iterable[str]) -> str:
  """Returns the SHA-256 of lines of text, in hexadecimal."""
  digest = hashlib.sha256()
  for line in lines:
    # File names can contain bytes that are not UTF-8.
    digest.update(f"{line}\n".encode(errors="backslashreplace"))
  return digest.hexdigest()


def file_state(file: bytes | pathlib.Path) -> str:
  """Returns a file's size and time as text, or the SHA-256 of bytes."""
  if isinstance(file, bytes):
    return digest_file(file)
  try:
    state = os.stat(file)
  except OSError:
    return "unreadable"
  return f"{state.st_size} {state.st_mtime_ns}"


def digest_file(file: bytes | pathlib.Path, may_remember: bool = False) -> str:
  """Returns the SHA-256 of a file's bytes in hexadecimal, or "unreadable".

  Args:
    file: path of the file, or its bytes.
    may_remember: if True, reads the file only once while its size and time stay
      the same.
  """
  if isinstance(file, bytes):
    return hashlib.sha256(file).hexdigest()
  try:
    state = os.stat(file)
    if stat.S_ISREG(state.st_mode):  # Reading a pipe would wait.
      digest = _remember_digest if may_remember else _digest_path
      return digest(file, state.st_size, state.st_mtime_ns)
  except OSError:  # The code that decodes the file reports the reason.
    pass
  return "unreadable"


def _digest_path(path, *_):
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


_remember_digest = functools.lru_cache(2**17)(_digest_path)


def to_json(value: Any, **options: Any) -> str:
  r"""Returns a value as JSON that can be written as UTF-8.

  Bytes of file names that are not UTF-8 become \udcNN. Options are arguments of
  `json.dumps`.
  """
  text = json.dumps(value, ensure_ascii=False, **options)
  return text.encode(errors="backslashreplace").decode()


def seal(values: Mapping[str, Any], indent: int | None = None) -> str:
  """Returns a dictionary as JSON that contains its own SHA-256."""
  return to_json({**values, _SEAL: _digest(values)}, indent=indent) + "\n"


def unseal(text: str | bytes) -> dict[str, Any]:
  """Returns the dictionary that `seal` received.

  Raises:
    ValueError: if the text is not sealed, or has changed since.
  """
  try:
    values = json.loads(text)
  except RecursionError as error:
    raise ValueError("it is nested too deeply") from error
  if not isinstance(values, dict):
    raise ValueError(f"it is a {type(values).__name__}, not a dictionary")
  if _SEAL not in values:
    raise ValueError("it does not contain its own SHA-256")
  if values.pop(_SEAL) != _digest(values):
    raise ValueError("its contents do not match its SHA-256")
  return values


def _digest(values):
  # Digests the values as they will be read: tuples, for example, become lists.
  text = json.dumps(json.loads(json.dumps(values)), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()
