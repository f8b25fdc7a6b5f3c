"""Runs train.py, eval.py and commands as a user does.

Their imports are slow, so each program is forked from a process that already
has the common imports. It is otherwise a process of its own.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import io
import logging
import multiprocessing
import os
import pathlib
import runpy
import signal
import subprocess
import sys
from concurrent import futures
from unittest import mock

import jax

_NUM_DEVICES = "JAX_NUM_CPU_DEVICES"
ROOT = pathlib.Path(__file__).parents[2]


def environment(num_devices=8):
  """Returns the environment of programs that tests start."""
  return {**os.environ, _NUM_DEVICES: str(num_devices)}


@functools.cache
def _forks():
  """Returns the context that forks processes from one with all imports.

  That process has started no JAX backend and no thread.
  """
  from multiprocessing import forkserver

  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(
    [
      *("cops_jax.training.loop", "cops_jax.evaluation.many"),
      *("cops_jax.detector", "cops_jax.reporting", "grain", "scipy.stats"),
      *("scipy.ndimage", "matplotlib.backends.backend_agg"),
      "jax.experimental.pallas.ops.tpu.splash_attention",
    ]
  )
  with mock.patch.dict(os.environ, environment()):
    forkserver.ensure_running()
  return context


def reduce_garbage_collection():
  """Makes garbage collection rarer.

  It would take a tenth of the time to examine millions of objects from traces,
  which are not garbage.
  """
  gc.freeze()
  gc.set_threshold(200_000, 20, 50)


def run_exit_functions():
  """Runs the exit functions in a process that ends by `os._exit`.

  CPython 3.11 to 3.14 have this private function. Without it, temporary files
  are left behind, but nothing else.
  """
  getattr(atexit, "_run_exitfuncs", lambda: None)()


def _run(arguments, folder, outputs, variables):
  """Turns the new process into `python ARGUMENTS` in a folder."""
  reduce_garbage_collection()
  for number, output in enumerate(outputs, 1):
    os.dup2(output.fileno(), number)
  os.chdir(folder)
  os.environ.clear()
  os.environ.update(variables)
  # JAX is already imported, so it does not read the variable again.
  jax.config.update("jax_num_cpu_devices", int(variables[_NUM_DEVICES]))
  try:
    if arguments[0] == "-m":
      sys.argv = arguments[1:]
      sys.path.insert(0, os.getcwd())
      runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
      sys.argv = arguments
      sys.path.insert(0, os.path.dirname(os.path.abspath(arguments[0])))
      runpy.run_path(arguments[0], run_name="__main__")
  finally:
    run_exit_functions()  # multiprocessing skips them.


def _read(reader):
  with reader, open(reader.fileno(), closefd=False) as file:
    return file.read()


class Program:
  """A running `python ARGUMENTS`, by default in the project's root.

  Attributes:
    pid: number of the process.
    returncode: exit status, or minus the number of the signal that ended it;
      None while it runs.
  """

  def __init__(self, *arguments, folder=ROOT, num_devices=8):
    readers, writers = zip(
      *(_forks().Pipe(duplex=False) for _ in ("stdout", "stderr")), strict=True
    )
    self._process = _forks().Process(
      target=_run,
      args=(
        [str(argument) for argument in arguments],
        folder,
        writers,
        environment(num_devices),
      ),
    )
    self._process.start()
    for writer in writers:
      writer.close()
    threads = futures.ThreadPoolExecutor(len(readers))
    self._outputs = [threads.submit(_read, reader) for reader in readers]
    threads.shutdown(wait=False)
    self.pid = self._process.pid

  @property
  def returncode(self):
    return self._process.exitcode

  def poll(self):
    return self.returncode

  def wait(self, timeout=300):
    self._process.join(timeout)
    if self.returncode is None:
      self.kill()
      raise TimeoutError(f"killed after {timeout} s: {self.communicate()}")
    return self.returncode

  def communicate(self, timeout=900):
    """Waits for the program to end; returns its output and its errors."""
    self.wait(timeout)
    return [output.result() for output in self._outputs]

  def send_signal(self, number):
    os.kill(self.pid, number)

  def kill(self):
    self.send_signal(signal.SIGKILL)


def run(*arguments, **options):
  """Runs `python ARGUMENTS`; returns exit status, output and errors."""
  program = Program(*arguments, **options)
  out, err = program.communicate()
  return program.returncode, out, err


@contextlib.contextmanager
def capture():
  """Captures output and errors; restores the log handlers at the end."""
  logger = logging.getLogger("cops_jax")
  before = logger.handlers, logger.level, logger.propagate
  out, err = io.StringIO(), io.StringIO()
  try:
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      yield out, err
  finally:
    logger.handlers, logger.level, logger.propagate = before


def call(name, *arguments):
  """Runs `cops NAME ARGUMENTS` in this process, without its signal handlers.

  Returns:
    Exit status, output and errors.
  """
  module = importlib.import_module(f"cops_jax.commands.{name}")
  caught = mock.patch("cops_jax.runtime.signals.catch_signals")
  with capture() as (out, err), caught:
    try:
      code = module.main([str(argument) for argument in arguments]) or 0
    except SystemExit as ended:
      code = ended.code or 0
      if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
  return code, out.getvalue(), err.getvalue()


def start_afresh(*arguments, **options):
  """Starts `python ARGUMENTS` without a fork, with pipes to its outputs."""
  return subprocess.Popen(
    [sys.executable, *map(str, arguments)],
    **{
      **dict(cwd=ROOT, env=environment(), text=True),
      **dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE),
      **options,
    },
  )
