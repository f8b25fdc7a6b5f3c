"""One process at a time in a work directory."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import pathlib
import socket
from collections.abc import Iterator

import filelock

from cops_jax.errors import InputError, WriteError
from cops_jax.files import require_local, write_file
from cops_jax.runtime.processes import in_first_process


@contextlib.contextmanager
def hold(workdir: str | os.PathLike, purpose: str) -> Iterator[None]:
  """Holds a work directory's lock, which the system takes from dead processes.

  In a cluster the first process holds it. It also works on network file systems
  that have locks; on others a file stands for it, which a process that was
  killed leaves behind.

  Args:
    workdir: of the run; created if missing.
    purpose: such as "training"; each has a lock of its own.

  Raises:
    InputError: another process, which is named, holds it.
    WriteError: the work directory cannot be written.
  """
  held = []
  workdir = pathlib.Path(workdir)
  in_first_process(lambda: held.append(_acquire(workdir, purpose)))
  try:
    yield
  finally:
    for lock in held:
      lock.release()


def _acquire(workdir, purpose):
  path = workdir / f".{purpose}.lock"
  holder = workdir / f".{purpose}.json"
  require_local(workdir)
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
    raise InputError(
      f"{workdir} is in use: {_describe(holder)} does its {purpose}. {advice}"
    ) from error
  except OSError as error:
    raise WriteError(
      f"{workdir} cannot be written: {error.strerror or error}"
    ) from error
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  values = {"process": os.getpid(), "host": socket.gethostname(), "since": now}
  write_file(holder, json.dumps(values) + "\n")
  return lock


def _describe(path):
  """Who holds the lock, as far as that is known."""
  try:
    values = json.loads(path.read_text("utf-8"))
    return (
      f"process {values['process']} on host {values['host']}, since"
      f" {values['since']},"
    )
  except (OSError, ValueError, KeyError, TypeError):
    return "another process"
