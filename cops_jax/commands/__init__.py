"""The commands, one module each, and their shared parser and exit codes.

A module imports JAX, data sets and models only after it has read its arguments,
so help and usage errors appear at once.
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

TOOL = "python -m tools.{}"  # The command line of a tool in a clone.
_EXIT_SECONDS = 20


class Parser(argparse.ArgumentParser):
  """Parser that expands ~ in arguments and suggests flags for unknown ones.

  It rejects unknown arguments even when it parses a subcommand.
  """

  _given: Sequence[str] = ()

  def parse_known_args(self, args=None, namespace=None):
    self._given = [*map(expand, sys.argv[1:] if args is None else args)]
    for text in self._given:  # Python 3.11 parses such a value as [].
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
    name: name of the command or tool, which replaces {} in `program`.
    description: help text, printed as it is; usually the module's docstring.
    program: command line of the program.
  """
  return Parser(
    prog=program.format(name),
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )


def end_soon() -> None:
  """Ends the program in 20 seconds even if threads wait for a lost server."""
  ending = threading.Timer(_EXIT_SECONDS, os._exit, [1])
  ending.daemon = True
  ending.start()


def _write_utf8():
  """Makes standard output UTF-8 in files and pipes, in every locale."""
  out = sys.stdout
  if isinstance(out, io.TextIOWrapper) and out.encoding.lower() != "utf-8":
    encoding = None if out.isatty() else "utf-8"
    out.reconfigure(encoding=encoding, errors="backslashreplace")


def command_line(
  main: Callable[[Sequence[str] | None], int | None],
) -> Callable[..., int | None]:
  """Decorates the main function of a command, which accepts its arguments.

  Output to files and pipes is UTF-8. The exit status of the program is
    1 after an `InputError` or an OSError about a file, with the message;
    2 after a `UsageError`, with the message;
    1 if its output is closed early, as by `... | head`, without a message;
    130 after Ctrl-C, with "interrupted".
  """

  @functools.wraps(main)
  def run(arguments: Sequence[str] | None = None) -> int | None:
    if arguments is None:
      # Imports and traces create millions of objects that are never freed.
      gc.set_threshold(200_000, 20, 50)
    try:
      try:
        _write_utf8()
        return main(arguments)
      finally:
        if arguments is None:
          gc.freeze()  # The collection at exit then skips these objects.
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
        # An orderly exit would crash in threads that are compiling.
        os._exit(130)
      sys.exit(130)
    except BrokenPipeError:
      # The interpreter flushes the remaining output at exit; discard it.
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      sys.exit(1)
    except OSError as error:
      if error.filename is None:
        raise
      # Any access to a path can raise this error, for example for a long name.
      sys.exit(f"error: {shorten(error.filename)}: {error.strerror}")

  return run
