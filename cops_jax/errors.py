"""Errors that commands report as a sentence instead of a traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator


class InputError(ValueError):
  """Error in the user's input: a config value, a file or a folder.

  Its message states the value and its place, what was expected, and what to do.
  """


class UsageError(InputError):
  """Error in a command line; the command ends with status 2."""


class WriteError(InputError):
  """Error in writing a file; callers can catch it and write elsewhere."""


class MissingRunError(InputError):
  """Error for a folder without a run, or a run without a checkpoint."""

  def __init__(self, message: str, workdir: object):
    command = f"cops train --config=... --workdir={workdir}"
    super().__init__(f"{message} Train first: {command}")


def suggest(name: str, known: Iterable[str]) -> str:
  """Returns " (did you mean A or B?)"; empty if no known name is similar."""
  import difflib

  near = difflib.get_close_matches(name, list(known))
  return f" (did you mean {' or '.join(near)}?)" if near else ""


def shorten(reason: object) -> str:
  """Returns a library's error as one line of at most 400 characters."""
  text = str(reason) or type(reason).__name__
  # Errors can quote files, and a terminal would obey control characters.
  line = "".join(c if c.isprintable() else " " for c in text[:400])
  return line if len(text) <= 400 else f"{line}..."


@contextlib.contextmanager
def needs_extra(what: str, extra: str, *packages: str) -> Iterator[None]:
  """Explains a failed import of a package that an extra installs.

  Args:
    what: feature that needs the extra, for the message.
    extra: name of the extra in pyproject.toml.
    *packages: packages that the extra installs; errors in importing any other
      package are raised unchanged.

  Raises:
    InputError: if one of the packages is not installed.
  """
  try:
    yield
  except ImportError as error:
    if (error.name or "").partition(".")[0] not in packages:
      raise
    raise InputError(
      f"{what} needs packages that are not installed. Run: pip install"
      f' "cops-jax[{extra}]"'
    ) from error
