"""The commands, a module each, and how they end.

A command's module imports JAX, data sets and models after it has read its
arguments, so that help and mistakes are shown at once.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import threading
from collections.abc import Callable, Sequence

from cops_jax.errors import InputError, shorten

_EXIT_SECONDS = 20


def make_parser(name: str, description: str) -> argparse.ArgumentParser:
  """A command's parser of arguments, without any yet.

  Args:
    name: of the command.
    description: its module's docstring, shown as it is.
  """
  return argparse.ArgumentParser(
    prog=f"cops {name}",
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )


def end_soon() -> None:
  """Ends the program even if its threads wait for a server that is gone."""
  ending = threading.Timer(_EXIT_SECONDS, os._exit, [1])
  ending.daemon = True
  ending.start()


def command_line(
  main: Callable[[Sequence[str] | None], int | None],
) -> Callable[..., int | None]:
  """Decorates the main of a command, which may be given its arguments.

  An `InputError`, or the system's about a file, ends the program with its
  message and exit status 1. Output that is closed early, as by `... | head`,
  ends it with status 1 and without a message, and Ctrl-C with status 130.
  """

  @functools.wraps(main)
  def run(arguments: Sequence[str] | None = None) -> int | None:
    try:
      status = main(arguments)
      sys.stdout.flush()
      return status
    except InputError as error:
      if arguments is None:
        end_soon()
      sys.exit(f"error: {error}")
    except KeyboardInterrupt:
      import multiprocessing

      print("interrupted", file=sys.stderr, flush=True)
      children = multiprocessing.active_children()
      for process in children:
        process.terminate()
      if arguments is None and not children:
        # Threads that compile would crash an orderly exit.
        os._exit(130)
      sys.exit(130)
    except BrokenPipeError:
      # The interpreter flushes the rest when it exits: discard it.
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      sys.exit(1)
    except OSError as error:
      if error.filename is None:
        raise
      # Such as a name that is too long, wherever a path is first looked at.
      sys.exit(f"error: {shorten(error.filename)}: {error.strerror}")

  return run
