"""The console command: `cops COMMAND`, or `python -m cops_jax COMMAND`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from cops_jax import __version__
from cops_jax.commands import command_line
from cops_jax.errors import UsageError, suggest

# In the order in which a new user needs them.
COMMANDS = {
  "demo": "serve a web page that finds anomalies in images dropped on it",
  "train": "train prompts on an auxiliary data set",
  "evaluate": "evaluate trained prompts on data sets and write a report",
  "predict": "find anomalies in your own images",
  "calibrate": "choose the thresholds for verdicts",
  "export": "write a complete detector to one file",
  "datasets": "list, check and prepare data sets",
  "weights": "save, publish and list prompts, and inspect weights",
  "compare": "compare the results of several runs in one table",
  "cache": "show and remove the data stored on this computer",
}

_USAGE = """usage: cops COMMAND ...

Zero-shot visual anomaly detection in JAX.

{}

cops COMMAND --help           describe a command and its arguments
cops --version                print the version
cops --print-completion SHELL print a completion script for bash or zsh"""


@command_line
def main(arguments: Sequence[str] | None = None) -> int | None:
  """Runs the command that the first argument names; returns its exit status."""
  name, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
  if name in ("", "-h", "--help"):
    rows = (f"  {name:10} {text}" for name, text in COMMANDS.items())
    usage = _USAGE.format("\n".join(rows))
    print(usage, file=sys.stdout if name else sys.stderr)
    return 0 if name else 2
  if name == "--version":
    print(f"cops_jax {__version__}")
    return 0
  if name == "--print-completion":
    from cops_jax.commands.completion import make_script

    print(make_script(rest[0] if rest else "", COMMANDS))
    return 0
  if name not in COMMANDS:
    raise UsageError(
      f"{name!r} is not a command{suggest(name, COMMANDS)}; the commands are"
      f" {', '.join(COMMANDS)}"
    )
  command = importlib.import_module(f"cops_jax.commands.{name}")
  sys.argv = [f"cops {name}", *rest]
  return command.main(None if arguments is None else rest)


if __name__ == "__main__":
  sys.exit(main())
