"""What the scripts share: their flags, plain log lines, one-sentence errors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from cops_jax.errors import InputError
from cops_jax.progress import show_messages

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Config file, see configs/.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Directory of the run: checkpoints, logs and results."
)


def _parse(arguments):
  """absl's flags; ml_collections' errors are told as shortly as absl's."""
  flags.mark_flags_as_required([_CONFIG, _WORKDIR])
  try:
    rest = flags.FLAGS(arguments)
    _CONFIG.value.keys()  # A file that could not be read raises only now.
    return rest
  except flags.Error as error:
    sys.exit(f"error: {error}")
  except (AttributeError, KeyError) as error:
    message = str(error).strip("'\"").replace("\\n", " ").replace("\\'", "'")
    sys.exit(f"error: a --config.FIELD flag names no field: {message}")
  except OSError as error:
    sys.exit(f"error: {' '.join(str(error).split())}")


def run(main: Callable[[Any, str], None]) -> None:
  """Calls a script's main with the config and the work directory.

  An `InputError` ends the script with its sentence and exit status 1.
  """

  def guarded(arguments):
    if len(arguments) > 1:
      sys.exit(f"error: unexpected argument {arguments[1]!r}")
    try:
      main(_CONFIG.value, _WORKDIR.value)
    except InputError as error:
      sys.exit(f"error: {error}")

  show_messages()
  absl_logging.set_verbosity(absl_logging.WARNING)
  app.run(guarded, flags_parser=_parse)
