"""The console command: `cops COMMAND`, or `python -m cops_jax COMMAND`.

Each command is a module of `cops_jax.commands`, imported when it is called: its
help is shown at once, as it loads JAX only after its arguments are read.
"""

from __future__ import annotations

import importlib
import sys

from cops_jax import __version__

# In the order in which a user meets them.
COMMANDS = {
  "demo": "serve a web page that finds anomalies in images dropped on it",
  "train": "train prompts on an auxiliary data set",
  "evaluate": "evaluate trained prompts on data sets, and write a report",
  "predict": "find anomalies in your own images",
  "calibrate": "choose the thresholds of verdicts",
  "export": "write a whole detector as one file",
  "datasets": "list, check and prepare data sets",
  "weights": "save and publish prompts, show what a file of weights holds",
  "compare": "put the results of several runs into one table",
}


_USAGE = """usage: cops COMMAND ...

Zero-shot visual anomaly detection with CLIP, in JAX.

{}

cops COMMAND --help shows a command's arguments; cops --version the version."""


def main() -> int | None:
  """Calls the command that the program's first argument names.

  Returns:
    Its exit status.
  """
  name, *arguments = sys.argv[1:] or [""]
  if name in ("", "-h", "--help"):
    rows = (f"  {name:10} {text}" for name, text in COMMANDS.items())
    usage = _USAGE.format("\n".join(rows))
    print(usage, file=sys.stdout if name else sys.stderr)
    return 0 if name else 2
  if name == "--version":
    print(f"cops_jax {__version__}")
    return 0
  if name not in COMMANDS:
    print(
      f"error: {name!r} is not a command; the commands are"
      f" {', '.join(COMMANDS)}",
      file=sys.stderr,
    )
    return 2
  sys.argv = [f"cops {name}", *arguments]
  return importlib.import_module(f"cops_jax.commands.{name}").main()


if __name__ == "__main__":
  sys.exit(main())
