"""Shell scripts that complete commands and flags, generated with shtab."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping

import shtab

from cops_jax.commands import Parser
from cops_jax.errors import UsageError

# Pattern and replacement in the script of each shell. The arguments that shtab
# does not complete are mostly files, so the script completes file names.
_FILES = {
  "bash": (r"complete -o \w+", r"\g<0> -o default"),
  "zsh": (r'(?m)^(  ".*:)"$', r'\1_files"'),
}


def make_script(shell: str, commands: Mapping[str, str]) -> str:
  """Returns the completion script of a shell.

  Args:
    shell: "bash" or "zsh".
    commands: descriptions of the commands, by name.

  Raises:
    UsageError: for any other shell.
  """
  if shell not in _FILES:
    raise UsageError(f"--print-completion is {shell!r}; expected bash or zsh")
  parser = Parser(prog="cops")
  group = parser.add_subparsers()
  for name, text in commands.items():
    own = importlib.import_module(f"cops_jax.commands.{name}")._parser()
    group.add_parser(name, help=text, parents=[own], add_help=False)
  return re.sub(*_FILES[shell], shtab.complete(parser, shell))
