"""Handlers of SIGTERM and Ctrl-C that stop a training so that it can resume."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from typing import Any

# EX_TEMPFAIL of sysexits.h: the same command resumes.
EXIT_CODE = 75
_RESUMES = f"the same command resumes (exit code {EXIT_CODE})"

# Seconds until a waiting process of a cluster ends after a signal, before and
# during training. The launch files kill it after two minutes.
_SECONDS, _TRAINING_SECONDS = 5, 100

_noted: str | None = None
_is_deferred = False


def catch_signals() -> None:
  """Makes SIGTERM and Ctrl-C end the process with `EXIT_CODE`.

  Until `defer` is called they end it at once, because nothing can be lost. A
  second Ctrl-C kills the process at any time.
  """
  signal.signal(signal.SIGTERM, _note)
  signal.signal(signal.SIGINT, _note)


def watch() -> None:
  """Catches signals even while this process waits for other processes.

  Python runs signal handlers only between its own instructions, so a process
  that waits inside a library does not run them. A thread then ends the process.
  The main thread must call this.
  """
  catch_signals()
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  signal.set_wakeup_fd(writer)
  threading.Thread(target=_end_late, args=(reader,), daemon=True).start()


def _end_late(reader):
  while os.read(reader, 1)[0] not in (signal.SIGTERM, signal.SIGINT):
    pass
  time.sleep(_TRAINING_SECONDS if _is_deferred else _SECONDS)
  end_process(
    f"stopped by a signal while it waited for other processes: {_RESUMES}"
  )


def end_process(message: str) -> None:
  """Prints a message and ends this process without waiting for its threads."""
  os.write(2, f"{message}\n".encode())
  for child in multiprocessing.active_children():
    child.terminate()
  os._exit(EXIT_CODE)


def defer() -> None:
  """Makes signals set `is_due` instead of ending the process."""
  global _is_deferred
  _is_deferred = True


def release() -> None:
  """Reverses `defer`, and ends the process if a signal was recorded."""
  global _is_deferred
  _is_deferred = False
  if _noted:
    _stop_at_once()


def ask(mesh: Any) -> Any:
  """Asks all processes of a mesh, between two steps, whether to stop.

  Returns at once; `is_due` waits for the answer. All processes must call it.
  """
  import jax
  import numpy as np

  from cops_jax.runtime.mesh import batch_sharding

  if jax.process_count() == 1:
    return None
  noted = np.full(jax.local_device_count(), _noted is not None)
  sharding = batch_sharding(mesh)
  return jax.make_array_from_process_local_data(sharding, noted).any()


def is_due(asked: Any) -> bool:
  """Returns whether to stop; all processes get the same answer to `ask`."""
  return _noted is not None if asked is None else bool(asked)


def stop(message: str) -> None:
  """Prints a message and raises SystemExit; the same command resumes."""
  # Not a log message, because signal handlers cannot use buffered files.
  os.write(2, f"{message}: {_RESUMES}\n".encode())
  sys.exit(EXIT_CODE)


def _note(number, _):
  global _noted
  _noted = signal.Signals(number).name
  # A second Ctrl-C can kill a save, but no earlier checkpoint is lost.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  if not _is_deferred:
    _stop_at_once()
  text = f"{_noted}: stopping after this step; press Ctrl-C to kill\n"
  os.write(2, text.encode())


def _stop_at_once():
  stop(f"stopped by {_noted}; nothing is lost")
