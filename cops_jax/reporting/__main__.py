"""python -m cops_jax.reporting compare is the command `cops compare`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cops_jax.commands import compare


def main(arguments: Sequence[str] | None = None) -> None:
  """The command line, whose first argument is "compare"."""
  given = sys.argv[1:] if arguments is None else arguments
  command, *rest = given or [""]
  if command != "compare":
    sys.exit(f"error: {command!r} is not a command; expected compare")
  compare.main(rest)


if __name__ == "__main__":
  main()
