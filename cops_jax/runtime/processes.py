"""Clusters of several JAX processes on one or more hosts."""

from __future__ import annotations

import contextlib
import logging
import pickle
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cops_jax.errors import InputError, shorten
from cops_jax.runtime import signals

_PEER_STATUS = (
  "(ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION|INTERNAL"
  "|UNAVAILABLE|UNKNOWN): "
)

_MAX_SHOWN = 8


def start(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  heartbeat_timeout_seconds: int = 30,
) -> None:
  """Joins a cluster. Call it before anything else uses JAX's devices.

  Without arguments, JAX recognizes the cluster from the environment: a TPU pod,
  Slurm, Open MPI or Kubernetes. Processes other than the first log only
  warnings and errors.

  Args:
    coordinator_address: host:port of the first process.
    num_processes: number of processes in the cluster.
    process_id: number of this process, from 0.
    heartbeat_timeout_seconds: seconds of silence after which a process counts
      as dead.

  Raises:
    InputError: if the arguments are invalid or the processes cannot connect.
  """
  import jax

  # JAX's handler of SIGTERM would replace the one in `signals`.
  jax.config.update("jax_enable_preemption_service", False)
  signals.watch()
  try:
    jax.distributed.initialize(
      coordinator_address,
      num_processes,
      process_id,
      heartbeat_timeout_seconds=heartbeat_timeout_seconds,
    )
  except (RuntimeError, ValueError) as error:
    raise InputError(
      "the processes did not connect to one cluster. Check"
      " --coordinator_address, --num_processes and --process_id:"
      f" {' '.join(str(error).split())}"
    ) from error
  if jax.process_index() > 0:
    logging.getLogger("cops_jax").setLevel(logging.WARNING)


def find_lost_peer(error: BaseException | None) -> str:
  """Returns the reason if an error shows that another process is lost.

  A computation across processes fails if one of them dies. JAX then raises its
  runtime error or, on CPU, an error of another type that mentions Gloo. All
  other errors, such as those of a bucket, return an empty string.
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
  """Returns the values of all processes, in their order; all must call it.

  Values are pickled, because the processes of a job trust each other.
  """
  import jax
  from jax.experimental import multihost_utils

  if jax.process_count() == 1:
    return [value]
  # Counts of pixels are mostly zeros; compression shrinks them to a hundredth.
  content = np.frombuffer(zlib.compress(pickle.dumps(value), 1), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(content.size)).reshape(-1)
  padded = np.zeros(sizes.max(), np.uint8)
  padded[: content.size] = content
  rows = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
  return [
    pickle.loads(zlib.decompress(row[:size].tobytes()))
    for row, size in zip(np.asarray(rows), sizes, strict=True)
  ]


@contextlib.contextmanager
def collect(errors: list[Exception]) -> Iterator[None]:
  """Appends an error to a list for `agree` instead of raising it."""
  try:
    yield
  except Exception as error:  # Other processes wait after any error.
    errors.append(error)


def in_all_processes(function: Callable[..., Any], *args: Any) -> Any:
  """Returns a function's result in each process; if one fails, all fail.

  All processes must call this. The function must not wait for other processes.

  Raises:
    InputError: in every process, if the function raised an error in one.
  """
  result, errors = None, []
  with collect(errors):
    result = function(*args)
  agree(errors)
  return result


def agree(errors: Sequence[Exception]) -> None:
  """Raises an error in all processes if one has an error; all must call it.

  Args:
    errors: this process's errors, in the order in which they occurred.

  Raises:
    InputError: if another process has an error; the message describes its
      first. A process with an error raises its own first error unchanged.
  """
  text = None
  if errors:
    text = str(errors[0])
    if not isinstance(errors[0], InputError):
      text = f"{type(errors[0]).__name__}: {text}"
  texts = gather_objects(text)
  if errors:
    raise errors[0]
  for process, text in enumerate(texts):
    if text is not None:
      raise InputError(f"process {process}: {text}")


def require_same(values: Mapping[str, Any]) -> None:
  """Raises an error in all processes if their values differ; all must call it.

  Args:
    values: values to compare, by a name for messages.

  Raises:
    InputError: if a value differs. The message names it, the process, and both
      values.
  """
  first, *others = gather_objects(dict(values))
  found = [
    f"{name} is {first.get(name)!r} in process 0 and {other.get(name)!r} in"
    f" process {process}"
    for process, other in enumerate(others, start=1)
    for name in first | other
    if first.get(name) != other.get(name)
  ]
  if found:
    shown = found[:_MAX_SHOWN] + ["..."] * (len(found) > _MAX_SHOWN)
    raise InputError(
      f"the processes of this job differ: {'; '.join(shown)}. Start all"
      " processes with the same packages, flags and files."
    )


def in_first_process(function: Callable[..., Any], *args: Any) -> Any:
  """Calls a function in the first process and returns its result in all.

  Errors are raised in all processes, so that none waits for one that ended.

  Raises:
    InputError: in all processes, if the function raises it.
    OSError: in the other processes, if the function raises any other error.
  """
  import jax

  result = error = shared = None
  if jax.process_index() == 0:
    try:
      result = function(*args)
    except Exception as caught:  # Other processes wait after any error.
      error = shared = caught
      if not isinstance(error, InputError):
        shared = OSError("the first process failed; it reports the reason")
  shared, result = gather_objects((shared, result))[0]
  if shared is not None:
    raise error or shared
  return result
