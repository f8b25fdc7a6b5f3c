"""Shards of a prepared data set in a bucket, copied when they are needed."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import hashlib
import itertools
import os
import pathlib
import queue
import threading
import time
from collections.abc import Callable, Sequence

import filelock

from cops_jax import buckets, copies
from cops_jax.errors import InputError
from cops_jax.files import digest_file

_NUM_THREADS = 8
_WAIT_SECONDS = 0.1


@dataclasses.dataclass(frozen=True)
class Shard:
  """One ArrayRecord file of a bucket.

  Attributes:
    address: of the file.
    num_examples: records in it.
    file: what the server says of it.
    sha256: that it must have, in hexadecimal; "" for any.
  """

  address: str
  num_examples: int
  file: buckets.File
  sha256: str

  @property
  def copy_name(self) -> str:
    """Of its copy; another content has another name. Ends with the size."""
    text = f"{self.address} {self.file.checksum} {self.sha256}"
    return f"{hashlib.sha256(text.encode()).hexdigest()[:32]}-{self.file.size}"


class Shards(Sequence):
  """Records of shards, of which a part is on this host's disk at a time.

  All data sets and processes of a host share one folder of copies, and what
  was not used for longest is deleted where another needs the room. A file is
  open only while a record is read, so that what is deleted takes no room. It
  can be passed to worker processes.

  Attributes:
    folder: of the copies.
  """

  def __init__(self, shards: Sequence[Shard], max_bytes: int):
    """Copies nothing yet.

    Args:
      shards: in the order of their records.
      max_bytes: of all copies, those that are being written included.
    """
    self.folder = copies.home() / "shards"
    self._shards, self._max_bytes = tuple(shards), max_bytes
    self._ends = tuple(
      itertools.accumulate(shard.num_examples for shard in shards)
    )
    self._expected = ()

  def __len__(self) -> int:
    return self._ends[-1]

  def require_room(self, num_shards: int, who: str, or_else: str = "") -> None:
    """Raises InputError if any so many shards may not all be kept.

    Args:
      num_shards: at a time.
      who: needs them, for the error.
      or_else: what else can be done than to keep more, for the error.
    """
    sizes = sorted((shard.file.size for shard in self._shards), reverse=True)
    needed = sum(sizes[:num_shards])
    if needed > self._max_bytes:
      raise InputError(
        f"config.input.copy_gigabytes is {self._max_bytes / 1e9:.4g}, and {who}"
        f" needs {min(num_shards, len(sizes))} of the {len(sizes)} shards in"
        f" {os.path.dirname(self._shards[0].address)} at a time, up to"
        f" {needed / 1e9:.4g} GB: keep that much{or_else}"
      )

  def __getitem__(self, index: int) -> bytes:
    """A record.

    Raises:
      InputError: its shard cannot be copied, or is not as it was prepared.
      RuntimeError: ArrayRecord's, if the copy was damaged since.
    """
    number = bisect.bisect_right(self._ends, index)
    shard = self._shards[number]
    record = index - self._ends[number] + shard.num_examples
    path = self.folder / shard.copy_name
    # It may be deleted, and copied again, while it is opened.
    with contextlib.suppress(FileNotFoundError, RuntimeError):
      return _read(path, record)
    with self._lock(shard.copy_name):
      try:
        return _read(path, record)  # Another process has copied it.
      except FileNotFoundError:
        return self._copy(shard, lambda partial: _read(partial, record))

  def expect(self, numbers: tuple[int, ...]) -> None:
    """Begins to copy shards in the background; those that are there stay.

    What would not fit, with one shard more, is left for later.
    """
    if numbers in self._expected:  # Readers may be at both sides of a border.
      return
    self._expected = (numbers, *self._expected[:1])
    room = self._max_bytes - max(shard.file.size for shard in self._shards)
    waiting = queue.SimpleQueue()
    for shard in (self._shards[number] for number in numbers):
      room -= shard.file.size
      if room < 0:
        break
      try:
        _note_use(self.folder / shard.copy_name)
      except FileNotFoundError:
        waiting.put(shard)
    for _ in range(min(_NUM_THREADS, waiting.qsize())):
      # Daemons, as the end of a run does not wait for what it will not read.
      threading.Thread(
        target=self._copy_all, args=(waiting,), daemon=True
      ).start()

  def _copy_all(self, waiting):
    # Whoever reads a shard that cannot be copied, or is being copied, waits for
    # it and says what is wrong.
    with contextlib.suppress(queue.Empty, InputError):
      while True:
        shard = waiting.get_nowait()
        with contextlib.suppress(filelock.Timeout):
          with self._lock(shard.copy_name, timeout=0):
            if not (self.folder / shard.copy_name).exists():
              self._copy(shard, lambda partial: b"")

  def _lock(self, name, timeout=-1):
    folder = self.folder / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(folder / name, timeout=timeout)

  def _copy(self, shard: Shard, read: Callable[[pathlib.Path], bytes]) -> bytes:
    """Copies a shard whose lock is held, and reads it before it may be gone."""
    path = self.folder / shard.copy_name
    partial = path.with_suffix(".partial")
    try:
      try:
        while not self._take_room(partial, shard.file.size):
          time.sleep(_WAIT_SECONDS)  # For copies that others are writing.
        buckets.download(shard.address, partial, shard.file)
        if shard.sha256 not in ("", digest_file(partial)):
          raise InputError(
            f"{shard.address} has been changed since it was prepared: its"
            " SHA-256 is not that of contents.json beside it. Delete that"
            " folder and prepare the data set again."
          )
        content = read(partial)
        with self._lock("room"):
          os.replace(partial, path)
        return content
      finally:
        with self._lock("room"):
          partial.unlink(missing_ok=True)
    except OSError as error:
      raise InputError(
        f"{shard.address} cannot be copied to {self.folder}:"
        f" {error.strerror or error}. The same command goes on from there."
      ) from error

  def _take_room(self, partial, size):
    """Makes room for a file and begins it; False if others hold the room."""
    with self._lock("room"):
      others = set(self.folder.glob("*-*")) - {partial}
      used = size + sum(map(_whole_size, others))
      for path in sorted(others, key=lambda path: path.stat().st_mtime_ns):
        if used <= self._max_bytes:
          break
        if self._delete(path):
          used -= _whole_size(path)
      if used > self._max_bytes:
        return False
      partial.touch()
      return True

  def _delete(self, path):
    """Deletes a copy; one that a living process writes stays."""
    try:
      if path.suffix:
        with self._lock(path.stem, timeout=0):
          path.unlink()
      else:
        path.unlink()
    except filelock.Timeout:
      return False
    return True


def _whole_size(path):
  """Bytes of a copy when it is finished, from its name."""
  return int(path.stem.rpartition("-")[2])


def _note_use(path):
  now = time.time_ns()  # The system's own time of a file is coarser.
  os.utime(path, ns=(now, now))


def _read(path, record):
  """A record of a file.

  Raises:
    FileNotFoundError: it is not there.
    RuntimeError: ArrayRecord's, if it is damaged.
  """
  from array_record.python.array_record_module import ArrayRecordReader

  _note_use(path)
  reader = ArrayRecordReader(
    str(path), options="readahead_buffer_size:0", file_reader_buffer_size=32768
  )
  try:
    (content,) = reader.read([record])
  except RuntimeError as error:
    if path.exists():
      raise
    raise FileNotFoundError(path) from error
  finally:
    with contextlib.suppress(RuntimeError):  # What reading has raised, again.
      reader.close()
  return content
