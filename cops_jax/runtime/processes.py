"""Several processes, on one host or many, as one JAX cluster."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import re
import sys
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cops_jax.errors import InputError, shorten
from cops_jax.runtime import signals

_PEER_STATUS = (
  "(ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION|INTERNAL"
  "|UNAVAILABLE|UNKNOWN): "
)


def start(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  heartbeat_timeout_seconds: int = 30,
) -> None:
  """Joins the cluster; to be called before anything else uses JAX's devices.

  Without arguments JAX recognises the cluster by its environment: a TPU pod,
  Slurm, Open MPI, Kubernetes. Only the first process goes on showing messages
  below warnings.

  Args:
    coordinator_address: host:port of the first process.
    num_processes: in the cluster.
    process_id: this one's number, from 0.
    heartbeat_timeout_seconds: after which JAX takes a silent process for dead.

  Raises:
    InputError: some arguments but not all are given, or the cluster does not
      come together.
  """
  import jax

  arguments = dict(
    coordinator_address=coordinator_address,
    num_processes=num_processes,
    process_id=process_id,
  )
  absent = [name for name, value in arguments.items() if value is None]
  if 0 < len(absent) < len(arguments):
    raise InputError(
      f"--{' and --'.join(absent)} must be given too: the address of the first"
      " process, the number of processes and this one's number belong together"
    )
  if not absent and not 0 <= process_id < num_processes:
    raise InputError(
      f"--process_id is {process_id}; with {num_processes} processes it must be"
      f" from 0 to {num_processes - 1}"
    )
  try:
    jax.distributed.initialize(
      **arguments, heartbeat_timeout_seconds=heartbeat_timeout_seconds
    )
  except (RuntimeError, ValueError) as error:
    raise InputError(
      "the processes did not come together as one cluster:"
      f" {' '.join(str(error).split())}"
    ) from error
  if jax.process_index() > 0:
    logging.getLogger("cops_jax").setLevel(logging.WARNING)


def end_process(message: str, code: int = signals.EXIT_CODE) -> None:
  """Ends this process at once, without waiting for threads or other processes.

  Args:
    message: shown on standard error.
    code: exit status.
  """
  os.write(2, f"{message}\n".encode())
  for child in multiprocessing.active_children():
    child.terminate()
  os._exit(code)


def find_lost_peer(error: BaseException | None) -> str:
  """Returns why the other processes cannot be reached, if this error says so.

  What JAX computes with the others fails if one of them has died. It then
  raises its runtime error, or on CPU an error of another type that names Gloo.
  An empty string stands for any other error, such as a bucket's.
  """
  import jax

  while error is not None and jax.distributed.is_initialized():
    reason = " ".join(str(error).split())
    is_runtime = isinstance(error, jax.errors.JaxRuntimeError)
    if (is_runtime or "Gloo" in reason) and re.match(_PEER_STATUS, reason):
      return shorten(reason)
    error = error.__cause__ or error.__context__
  return ""


def peak_memory_bytes() -> int:
  """Returns the most memory this process has used; 0 on Windows."""
  try:
    import resource
  except ImportError:
    return 0
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else peak * 1024


def gather_objects(value: Any) -> list[Any]:
  """What each process gives, in the order of processes, the same in all.

  All call it. The processes of one job trust each other, so the value may be
  anything that can be pickled.
  """
  import jax
  from jax.experimental import multihost_utils

  if jax.process_count() == 1:
    return [value]
  # Counts of pixels, most of which are zero, shrink to a hundredth.
  content = np.frombuffer(zlib.compress(pickle.dumps(value), 1), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(content.size)).reshape(-1)
  padded = np.zeros(sizes.max(), np.uint8)
  padded[: content.size] = content
  rows = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
  return [
    pickle.loads(zlib.decompress(row[:size].tobytes()))
    for row, size in zip(np.asarray(rows), sizes, strict=True)
  ]


def in_all_processes(function: Callable[..., Any], *args: Any) -> Any:
  """Calls a function in every process; where it fails in one, it fails in all.

  The function may not need the other processes. All call this.

  Returns:
    What the function returns in this process.

  Raises:
    InputError: in every process, if the function raised anything in one.
  """
  result, errors = None, []
  try:
    result = function(*args)
  except Exception as caught:  # The others wait, whatever it is.
    errors.append(caught)
  agree(errors)
  return result


def agree(errors: Sequence[Exception]) -> None:
  """Raises an error in all processes if there is one in any of them.

  All call it.

  Args:
    errors: of this process, in their order.

  Raises:
    InputError: the first process's with errors; or in that process itself, what
      it was.
  """
  first = errors[0] if errors else None
  for process, text in enumerate(gather_objects(first and _describe(first))):
    if first is not None:
      raise first
    if text is not None:
      raise InputError(f"process {process}: {text}")


def _describe(error):
  if isinstance(error, InputError):
    return str(error)
  return f"{type(error).__name__}: {error}"


def in_first_process(function: Callable[..., Any], *args: Any) -> Any:
  """Calls a function in the first process; gives all processes what it returns.

  Where it fails, all do, so that none waits for one that has ended.

  Raises:
    InputError: the function's own, in all processes.
    OSError: in the other processes, for anything else that it raised.
  """
  import jax

  result = error = None
  if jax.process_index() == 0:
    try:
      result = function(*args)
    except Exception as caught:  # The others wait, whatever it is.
      error = caught
  told = error
  if error is not None and not isinstance(error, InputError):
    told = OSError("the first process says why")
  told, result = gather_objects((told, result))[0]
  if told is not None:
    raise error or told
  return result
