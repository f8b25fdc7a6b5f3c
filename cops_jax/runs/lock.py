"""One process at a time in a work directory."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
from collections.abc import Iterator

import filelock

from cops_jax.errors import InputError, WriteError
from cops_jax.files import write_file
from cops_jax.paths import is_address, to_path
from cops_jax.runs import lease
from cops_jax.runtime.processes import in_first_process


@contextlib.contextmanager
def hold(workdir: str | os.PathLike, purpose: str) -> Iterator[None]:
  """Holds a work directory's lock, which the system takes from dead processes.

  In a cluster the first process holds it. It also works on network file systems
  that have locks; on others a file stands for it, which a process that was
  killed leaves behind. In buckets it is a `lease.Lease`.

  Args:
    workdir: of the run; created if missing.
    purpose: such as "training"; each has a lock of its own.

  Raises:
    InputError: another process, which is named, holds it.
    WriteError: the work directory cannot be written.
  """
  held = []
  workdir = to_path(workdir)
  acquire = _acquire_lease if is_address(workdir) else _acquire
  in_first_process(lambda: held.append(acquire(workdir, purpose)))
  try:
    yield
  finally:
    for lock in held:
      lock.release()


def _facts():
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  return {"process": os.getpid(), "host": socket.gethostname(), "since": now}


def _acquire_lease(workdir, purpose):
  lock = lease.Lease(workdir / f".{purpose}.lease", _facts())
  try:
    lock.acquire()
  except InputError as error:
    raise _in_use(workdir, purpose, str(error)) from error
  except OSError as error:
    raise _not_writable(workdir, error) from error
  return lock


def _acquire(workdir, purpose):
  path = workdir / f".{purpose}.lock"
  holder = workdir / f".{purpose}.json"
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    advice = "Wait for it or end it."
    try:
      lock.acquire(blocking=False)
    except NotImplementedError:  # The file system has no locks.
      lock = filelock.SoftFileLock(path)
      advice = f"If it is no longer running, delete {path}."
      lock.acquire(blocking=False)
  except filelock.Timeout as error:
    raise _in_use(workdir, purpose, _describe(holder), advice) from error
  except OSError as error:
    raise _not_writable(workdir, error) from error
  write_file(holder, json.dumps(_facts()) + "\n")
  return lock


def _in_use(workdir, purpose, who, advice="Wait for it or end it."):
  return InputError(f"{workdir} is in use for {purpose} by {who}. {advice}")


def _not_writable(workdir, error):
  return WriteError(f"{workdir} cannot be written: {error.strerror or error}")


def _describe(path):
  """Who holds the lock, as far as that is known."""
  try:
    return lease.describe(json.loads(path.read_text("utf-8")))
  except (OSError, ValueError, TypeError):
    return "another process"
