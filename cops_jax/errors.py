"""Errors that commands show as a sentence instead of a traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator


class InputError(ValueError):
  """The user's input cannot be used: a config value, a file, a folder.

  The message is complete: what and where, what was expected, what to do.
  """


class UsageError(InputError):
  """A command line is wrong; the command ends with status 2."""


class WriteError(InputError):
  """A file cannot be written; callers may know another place for it."""


class MissingRunError(InputError):
  """There is no run, or nothing that it has trained yet."""

  def __init__(self, message: str, workdir: object):
    command = f"cops train --config=... --workdir={workdir}"
    super().__init__(f"{message} Train first: {command}")


def suggest(name: str, known: Iterable[str]) -> str:
  """Returns " (did you mean A or B?)", or an empty string if none is near."""
  import difflib

  near = difflib.get_close_matches(name, list(known))
  return f" (did you mean {' or '.join(near)}?)" if near else ""


def shorten(reason: object) -> str:
  """A library's error as one line of text; some quote whole files."""
  text = str(reason) or type(reason).__name__
  # Of files' own words; a terminal would obey some characters.
  line = "".join(c if c.isprintable() else " " for c in text[:400])
  return line if len(text) <= 400 else f"{line}..."


@contextlib.contextmanager
def needs_extra(what: str, extra: str, *packages: str) -> Iterator[None]:
  """For the imports of what an extra installs.

  Args:
    what: is to be done with it.
    extra: in pyproject.toml.
    packages: that it installs; errors of other imports stay as they are.

  Raises:
    InputError: one of the packages is not installed.
  """
  try:
    yield
  except ImportError as error:
    if (error.name or "").partition(".")[0] not in packages:
      raise
    raise InputError(
      f"{what} needs packages that are not installed: pip install"
      f' "cops-jax[{extra}]"'
    ) from error
