"""The commands, a module each, and how they end.

A command's module imports JAX, data sets and models after it has read its
arguments, so that help and mistakes are shown at once.
"""

from __future__ import annotations

import argparse
import functools
import gc
import io
import os
import re
import sys
import threading
from collections.abc import Callable, Sequence
from typing import NoReturn

from cops_jax.errors import InputError, UsageError, shorten, suggest
from cops_jax.paths import expand

TOOL = "python -m tools.{}"  # How a clone's tools are called.
_EXIT_SECONDS = 20


class Parser(argparse.ArgumentParser):
  """Parses arguments, with ~ in them expanded; suggests flags for unknown ones.

  It refuses unknown arguments even if it is another parser's command.
  """

  _given: Sequence[str] = ()

  def parse_known_args(self, args=None, namespace=None):
    self._given = [*map(expand, sys.argv[1:] if args is None else args)]
    for text in self._given:  # Python 3.11 takes the value for an empty list.
      if text.startswith("--") and text.endswith("=--"):
        self.error(f"{text} has no value")
    options, rest = super().parse_known_args(self._given, namespace)
    if rest:
      self.error(f"unrecognized arguments: {' '.join(rest)}")
    return options, rest

  def error(self, message: str) -> NoReturn:
    flags = re.findall(r"^  (?:-\w, )?(--[\w.]+)", self.format_help(), re.M)
    names = [text.partition("=")[0] for text in self._given]
    for name in names:
      if name.startswith("--") and name not in flags:
        if near := suggest(name, flags):
          message += near if name in message else f"; {name}{near}"
    super().error(message)


def make_parser(
  name: str, description: str, program: str = "cops {}"
) -> Parser:
  """Returns a parser without arguments.

  Args:
    name: of the command or tool.
    description: its module's docstring, shown as it is.
    program: how it is called, with {} for the name.
  """
  return Parser(
    prog=program.format(name),
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )


def end_soon() -> None:
  """Ends the program even if its threads wait for a server that is gone."""
  ending = threading.Timer(_EXIT_SECONDS, os._exit, [1])
  ending.daemon = True
  ending.start()


def _write_utf8():
  """Standard output into files and pipes is UTF-8 whatever the locale."""
  out = sys.stdout
  if isinstance(out, io.TextIOWrapper) and out.encoding.lower() != "utf-8":
    encoding = None if out.isatty() else "utf-8"
    out.reconfigure(encoding=encoding, errors="backslashreplace")


def command_line(
  main: Callable[[Sequence[str] | None], int | None],
) -> Callable[..., int | None]:
  """Decorates the main of a command, which may be given its arguments.

  An `InputError`, or the system's about a file, ends the program with its
  message and exit status 1, a `UsageError` with 2. Output that is closed early,
  as by `... | head`, ends it with status 1 and without a message, and Ctrl-C
  with status 130. Output into files and pipes is UTF-8.
  """

  @functools.wraps(main)
  def run(arguments: Sequence[str] | None = None) -> int | None:
    if arguments is None:
      # Imports and traces make millions of objects that live to the end.
      gc.set_threshold(200_000, 20, 50)
    try:
      try:
        _write_utf8()
        return main(arguments)
      finally:
        if arguments is None:
          gc.freeze()  # An exit need not look through them.
        print(end="", flush=True)
    except UsageError as error:
      print(f"error: {error}", file=sys.stderr)
      sys.exit(2)
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
