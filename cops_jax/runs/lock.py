"""One process at a time in a work directory."""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import logging
import os
import pathlib
import socket
from collections.abc import Iterator

import filelock

from cops_jax.errors import InputError, WriteError
from cops_jax.files import create_file, delete, read_file, to_json, write_file
from cops_jax.paths import is_address, to_path
from cops_jax.runtime.processes import in_first_process

_logger = logging.getLogger(__name__)

# Names the job that launch files start again, on this host or another.
_JOB = "COPS_JAX_JOB"


@contextlib.contextmanager
def hold(workdir: str | os.PathLike, purpose: str) -> Iterator[None]:
  """Holds a work directory's lock; in a cluster the first process does.

  On a local disk, or a network file system with locks, the system takes the
  lock from a dead process. Elsewhere, and in buckets, the lock is a file, which
  a killed process leaves behind. It is taken over if it is of the same job (the
  environment variable COPS_JAX_JOB) or of a dead process of this machine.

  Args:
    workdir: run directory; created if missing.
    purpose: such as "training"; each has a lock of its own.

  Raises:
    InputError: another process, which is named, holds it.
    WriteError: the work directory cannot be written.
  """
  held = contextlib.ExitStack()

  def acquire():
    held.callback(_acquire(to_path(workdir), purpose))

  in_first_process(acquire)
  with held:
    yield


def _acquire(workdir, purpose):
  """Returns a function that releases the lock."""
  try:
    if is_address(workdir):
      return _create(workdir, purpose)
    workdir.mkdir(parents=True, exist_ok=True)
    holder = workdir / f".{purpose}.json"
    lock = filelock.FileLock(workdir / f".{purpose}.lock")
    try:
      lock.acquire(blocking=False)
    except filelock.Timeout as error:
      advice = "Wait for it or end it."
      raise _in_use(workdir, purpose, _read(holder), advice) from error
    except NotImplementedError:  # The file system has no locks.
      return _create(workdir, purpose)
    write_file(holder, to_json(_describe_self()) + "\n")
    return lock.release
  except OSError as error:
    raise WriteError(
      f"{workdir} cannot be written: {error.strerror or error}"
    ) from error


def _create(workdir, purpose):
  """Creates the file that stands for a lock, for which it must be absent."""
  path = workdir / f".{purpose}.held"
  while True:
    try:
      create_file(path, to_json(_describe_self()).encode())
      return functools.partial(_delete, path)
    except FileExistsError:
      holder = _read(path)
    if not _is_over(holder):
      remove = "gcloud storage rm" if is_address(path) else "rm"
      advice = f"If it is no longer running, remove its lock: {remove} {path}"
      raise _in_use(workdir, purpose, holder, advice)
    _logger.info("%s is taken over from %s", path, _name(holder))
    delete(path)


def _delete(path):
  try:
    delete(path)
  except OSError as error:
    _logger.warning("%s is left behind: %s", path, error.strerror)


def _describe_self():
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  return {
    "process": os.getpid(),
    "host": socket.gethostname(),
    "since": now,
    "machine": _machine(),
    "job": os.environ.get(_JOB, ""),
  }


def _machine():
  """Returns an id of the system in which process numbers are unique, or ""."""
  try:
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
  except OSError:
    return ""


def _read(path):
  """Returns what a process wrote of itself; empty if that cannot be read."""
  try:
    found = json.loads(read_file(path))
  except (FileNotFoundError, ValueError, RecursionError):
    return {}
  is_whole = isinstance(found, dict) and isinstance(found.get("process"), int)
  return found if is_whole else {}


def _is_over(holder):
  here = _describe_self()
  if here["job"] and holder.get("job") == here["job"]:
    return True
  if not here["machine"] or holder.get("machine") != here["machine"]:
    return False
  try:
    os.kill(holder["process"], 0)
  except ProcessLookupError:
    return True
  except (OSError, OverflowError):
    pass
  return False


def _in_use(workdir, purpose, holder, advice):
  return InputError(
    f"{workdir} is in use for {purpose} by {_name(holder)}. {advice}"
  )


def _name(holder):
  if not holder:
    return "another process"
  return (
    f"process {holder['process']} on host {holder.get('host')}, since"
    f" {holder.get('since')}"
  )
