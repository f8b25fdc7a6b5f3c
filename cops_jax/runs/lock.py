"""The lock of a run directory, which admits one process at a time."""

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

# Environment variable with the name of a job. The launch files set it. They
# restart a job on any host.
_JOB = "COPS_JAX_JOB"


@contextlib.contextmanager
def hold(workdir: str | os.PathLike, purpose: str) -> Iterator[None]:
  """Holds a run directory's lock; in a cluster, the first process holds it.

  On file systems with locks, the system releases the lock of a dead process. On
  other file systems and in buckets, the lock is a file, which a killed process
  leaves behind. This process takes that file over if it belongs to the same job
  (the environment variable COPS_JAX_JOB) or to a dead process on this machine.

  Args:
    workdir: run directory; created if missing.
    purpose: name of the lock, such as "training".

  Raises:
    InputError: if another process, which the message names, holds the lock.
    WriteError: if the run directory cannot be written.
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
      advice = "Wait for that process, or end it."
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
  """Creates a file that serves as the lock; returns its release function."""
  path = workdir / f".{purpose}.held"
  while True:
    try:
      create_file(path, to_json(_describe_self()).encode())
      return functools.partial(_delete, path)
    except FileExistsError:
      holder = _read(path)
    if not _has_ended(holder):
      remove = "gcloud storage rm" if is_address(path) else "rm"
      advice = "If that process is no longer running, remove its lock:"
      raise _in_use(workdir, purpose, holder, f"{advice} {remove} {path}")
    _logger.info("taking over the lock %s from %s", path, _name(holder))
    delete(path)


def _delete(path):
  try:
    delete(path)
  except OSError as error:
    _logger.warning("cannot delete the lock %s: %s", path, error.strerror)


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
  """Returns an id of the system that numbers processes; empty if unknown."""
  try:
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
  except OSError:
    return ""


def _read(path):
  """Returns a lock holder's description of itself; empty if unreadable."""
  try:
    found = json.loads(read_file(path))
  except (FileNotFoundError, ValueError, RecursionError):
    return {}
  is_whole = isinstance(found, dict) and isinstance(found.get("process"), int)
  return found if is_whole else {}


def _has_ended(holder):
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
