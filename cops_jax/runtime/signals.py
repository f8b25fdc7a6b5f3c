"""SIGTERM and Ctrl-C: training stops after a step, saved, to go on later."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from typing import Any

# EX_TEMPFAIL of sysexits.h: the same command again goes on.
EXIT_CODE = 75
_RESUMES = f"the same command resumes (exit code {EXIT_CODE})"

# Seconds that a process of a cluster has left after a signal, before training
# and in it. The launch files kill it after two minutes.
_SECONDS, _TRAINING_SECONDS = 5, 100

_noted: str | None = None
_is_deferred = False


def catch_signals() -> None:
  """From now on SIGTERM and Ctrl-C end the process with `EXIT_CODE`.

  At once, until `defer` is called: nothing is lost then. A second Ctrl-C kills
  the process, at any time.
  """
  signal.signal(signal.SIGTERM, _note)
  signal.signal(signal.SIGINT, _note)


def watch() -> None:
  """Catches signals, and ends this process if it then waits for others.

  Handlers run between Python's own instructions, which a process that waits in
  a library for other processes does not reach. The main thread calls this.
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


def end_process(message: str, code: int = EXIT_CODE) -> None:
  """Ends this process at once, without waiting for threads or other processes.

  Args:
    message: shown on standard error.
    code: exit status.
  """
  os.write(2, f"{message}\n".encode())
  for child in multiprocessing.active_children():
    child.terminate()
  os._exit(code)


def defer() -> None:
  """From now on signals are only noted, for `is_due` to report."""
  global _is_deferred
  _is_deferred = True


def release() -> None:
  """From now on signals end the process at once again; so does a noted one."""
  global _is_deferred
  _is_deferred = False
  if _noted:
    _stop_at_once()


def ask(mesh: Any) -> Any:
  """Asks all processes of a mesh, between two steps, whether to stop.

  Returns at once; `is_due` waits for the answer. All processes call it.
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
  """Whether to stop; all processes get the same answer to what `ask` asked."""
  return _noted is not None if asked is None else bool(asked)


def stop(message: str) -> None:
  """Ends the process as one that the same command resumes.

  Args:
    message: what was done until now.

  Raises:
    SystemExit: always.
  """
  # Not a log message: signal handlers may not use buffered files.
  os.write(2, f"{message}: {_RESUMES}\n".encode())
  sys.exit(EXIT_CODE)


def _note(number, _):
  global _noted
  _noted = signal.Signals(number).name
  # A save may be killed too, so there is no need to wait for it.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  if not _is_deferred:
    _stop_at_once()
  os.write(2, f"{_noted}: stopping after this step; Ctrl-C kills\n".encode())


def _stop_at_once():
  stop(f"stopped by {_noted}, nothing is lost")
