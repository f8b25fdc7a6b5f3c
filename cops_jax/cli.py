"""What the scripts share: plain log lines and one-sentence errors."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence

from absl import app
from absl import logging as absl_logging

from cops_jax.errors import InputError


def run(main: Callable[[Sequence[str]], None]) -> None:
  """Runs a script's main as absl does; an `InputError` ends it with exit 1."""

  def guarded(arguments):
    if len(arguments) > 1:
      sys.exit(f"error: unexpected argument {arguments[1]!r}")
    try:
      main(arguments)
    except InputError as error:
      sys.exit(f"error: {error}")

  # Ours alone: jax and Orbax log every detail at this level.
  logger = logging.getLogger("cops_jax")
  logger.setLevel(logging.INFO)
  logger.propagate = False
  handler = logging.StreamHandler()
  handler.setFormatter(logging.Formatter("%(message)s"))
  logger.addHandler(handler)
  absl_logging.set_verbosity(absl_logging.WARNING)
  app.run(guarded)
