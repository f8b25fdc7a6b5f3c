"""SIGTERM and Ctrl-C: training stops after a step, saved, to go on later."""

from __future__ import annotations

import os
import signal
import sys

# EX_TEMPFAIL of sysexits.h: the same command again goes on.
EXIT_CODE = 75

_noted: str | None = None
_is_deferred = False


def catch_signals() -> None:
  """From now on SIGTERM and Ctrl-C end the process with `EXIT_CODE`.

  At once, until `defer` is called: nothing is lost then. A second Ctrl-C kills
  the process, at any time.
  """
  signal.signal(signal.SIGTERM, _note)
  signal.signal(signal.SIGINT, _note)


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


def is_due(step: int) -> bool:
  """Whether to stop after this step. All processes get the same answer.

  Args:
    step: 1, 2, 3... since this process started; every process calls with each.
  """
  import jax
  from jax.experimental import multihost_utils

  if jax.process_count() == 1:
    return _noted is not None
  if _noted == "SIGINT":
    # jax.distributed, which finds the step to stop at, listens to SIGTERM.
    _forward()
  return multihost_utils.reached_preemption_sync_point(step)


def stop(message: str) -> None:
  """Ends the process as one that can be resumed; the message says from where.

  Raises:
    SystemExit: always.
  """
  # Not a log message: signal handlers may not use buffered files.
  os.write(2, f"{message}\n".encode())
  sys.exit(EXIT_CODE)


def _forward():
  global _noted
  _noted = None
  os.kill(os.getpid(), signal.SIGTERM)


def _note(number, _):
  global _noted
  _noted = signal.Signals(number).name
  # A save may be killed too, so there is no need to wait for it.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  if not _is_deferred:
    _stop_at_once()
  os.write(2, f"{_noted}: stopping after this step; Ctrl-C kills\n".encode())


def _stop_at_once():
  stop(
    f"stopped by {_noted}, nothing is lost: the same command goes on (exit code"
    f" {EXIT_CODE})"
  )
