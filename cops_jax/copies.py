"""Copies on this host's disk of what lies in object storage, and back."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pathlib
import shutil
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

from cops_jax import buckets
from cops_jax.errors import InputError
from cops_jax.files import find_files, write_file
from cops_jax.progress import Progress, gigabytes

_logger = logging.getLogger(__name__)

_NUM_THREADS = 8


def place_of(address: str | os.PathLike) -> pathlib.Path:
  """Where the copy of a file or folder is, or will be."""
  scheme, _, name = os.fspath(address).partition("://")
  return home() / scheme / name.strip("/")


def home() -> pathlib.Path:
  """The folder of all copies."""
  import pooch

  return pathlib.Path(pooch.os_cache("cops_jax")) / "copies"


def fetch(
  address: str | os.PathLike,
  choose: Callable[[Collection[str]], Collection[str]] | None = None,
  must_exist: bool = True,
) -> pathlib.Path:
  """Copies a file, or all in a folder, unless that has been done before.

  Files are told by their size and checksum. Those that are no longer at the
  address are deleted. What an interrupted copy has finished stays. Processes of
  one host wait for each other.

  Args:
    address: of the file or folder.
    choose: which files of a folder to copy, from their names; by default all.
    must_exist: whether it is an error that there is nothing.

  Returns:
    `place_of` the address.

  Raises:
    InputError: there is nothing, or it cannot be copied.
  """
  import filelock

  place = place_of(address)
  key = hashlib.sha256(os.fspath(address).encode()).hexdigest()[:16]
  try:
    found = buckets.find_files(address)
    if must_exist and not found:
      raise InputError(f"{address} does not exist")
    (home() / "records").mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(home() / "records" / f"{key}.lock"):
      copy = _Copy(address, place, home() / "records" / f"{key}.json")
      copy.delete_others(found)
      if choose:
        found = {name: found[name] for name in choose(found)}
      copy.add_missing(found)
  except OSError as error:
    raise InputError(
      f"{address} cannot be copied to {place}: {error.strerror or error}. What"
      " was copied stays, and the same command goes on from there."
    ) from error
  return place


class _Copy:
  """One address's copy, with a record of what was found to be right."""

  def __init__(self, address, place, record):
    self._address, self._place, self._record = address, place, record
    try:
      self._known = json.loads(record.read_bytes())
    except (OSError, ValueError):
      self._known = {}
    self._lock = threading.Lock()

  def delete_others(self, found):
    """Deletes what is no longer at the address; not what is being written."""
    for name in find_files(self._place):
      if name not in found and not name.endswith(("partial", "lock")):
        self._path(name).unlink(missing_ok=True)
        self._known.pop(name, None)

  def add_missing(self, found):
    missing = {
      name: file for name, file in found.items() if not self._has(name, file)
    }
    try:
      if missing:
        self._download(missing)
    finally:
      write_file(self._record, json.dumps(self._known))

  def _path(self, name):
    return self._place / name if name else self._place

  def _state(self, name, file):
    stat = self._path(name).stat()
    return [*file, stat.st_size, stat.st_mtime_ns]

  def _has(self, name, file):
    """Whether a file is there and right; one without a record is read."""
    path = self._path(name)
    try:
      if self._known.get(name) == self._state(name, file):
        return True
      is_right = (
        file.checksum
        and path.stat().st_size == file.size
        and buckets.compute_checksum(path) == file.checksum
      )
    except FileNotFoundError:
      return False
    if is_right:
      self._known[name] = self._state(name, file)
    return is_right

  def _download(self, missing):
    size = sum(file.size for file in missing.values())
    self._place.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(self._place.parent).free
    _logger.info(
      "copying %d files of %s, %.3g MB, to %s",
      *(len(missing), self._address, size / 1e6, self._place),
    )
    if size > free:
      raise InputError(
        f"{self._address} needs {gigabytes(size)}, and {self._place.parent}"
        f" has {gigabytes(free)} free: make room, or name another place in"
        " XDG_CACHE_HOME"
      )
    progress, done = Progress(size, "bytes"), 0

    def count(number):
      nonlocal done
      with self._lock:
        done += number
        progress.update(done, f"copying {self._address}")

    def download(name, file):
      path = self._path(name)
      path.parent.mkdir(parents=True, exist_ok=True)
      partial = path.with_name(f"{path.name}.partial")
      source = f"{self._address}/{name}" if name else self._address
      buckets.download(source, partial, file, count)
      os.replace(partial, path)
      self._known[name] = self._state(name, file)

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
      tasks = [pool.submit(download, *item) for item in missing.items()]
      try:
        for task in tasks:
          task.result()
      finally:
        for task in tasks:
          task.cancel()


def send(
  folder: pathlib.Path,
  address: str | os.PathLike,
  last: Sequence[str] = (),
) -> None:
  """Copies all files of a local folder into a bucket.

  Args:
    folder: to copy.
    address: of the folder that they are to be in.
    last: names of files that are sent when all others are there.

  Raises:
    OSError: they cannot be written.
  """
  names = find_files(folder)

  def upload(name):
    buckets.upload(folder / name, f"{os.fspath(address)}/{name}")

  with ThreadPoolExecutor(_NUM_THREADS) as pool:
    list(pool.map(upload, [name for name in names if name not in last]))
  for name in last:
    upload(name)
