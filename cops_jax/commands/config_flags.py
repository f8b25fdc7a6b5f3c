"""Train's and evaluate's flags and their help; each begins with a config."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Callable

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict
from ml_collections import config_flags as config_files

from cops_jax.commands import command_line, describe, end_soon
from cops_jax.errors import InputError
from cops_jax.progress import show_messages

_CONFIG = config_files.DEFINE_config_file(
  "config",
  None,
  "Config file, see configs/, or a recipe's name, such as visa or demo.",
  lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Directory of the run: checkpoints, logs and results."
)

_ALLOW_OTHER_CLIP = flags.DEFINE_bool(
  "allow_other_clip", False, "Accept other CLIP weights than the run's own."
)
_DISTRIBUTED = flags.DEFINE_bool(
  "distributed",
  False,
  "Join the other processes of a cluster that JAX recognises: a TPU pod, Slurm,"
  " Open MPI. For others give the next three flags instead.",
)
_COORDINATOR_ADDRESS = flags.DEFINE_string(
  "coordinator_address", None, "Host and port of the first process."
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", None, "Processes in the cluster.", lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "This process's number, from 0.", lower_bound=0
)
_HEARTBEAT_TIMEOUT_SECONDS = flags.DEFINE_integer(
  "heartbeat_timeout_seconds",
  30,
  "Seconds without a word after which a process of a cluster counts as dead.",
  lower_bound=1,
)
_VERIFY = flags.DEFINE_bool(
  "verify", False, "Only check the work directory's files; needs no --config."
)


class _ConfigParser(flags.ArgumentParser):
  """Reads --config: a file where there is one, a recipe's name otherwise."""

  def __init__(self, file_parser):
    self._file_parser = file_parser

  def parse(self, argument):
    from cops_jax.config import recipe

    is_name = re.fullmatch(r"\w+", argument) and not os.path.exists(argument)
    return (recipe if is_name else self._file_parser.parse)(argument)

  def flag_type(self):
    return self._file_parser.flag_type()


flags.FLAGS["config"].parser = _ConfigParser(flags.FLAGS["config"].parser)


def _parse(arguments, recorded_config):
  """absl's flags; ml_collections' errors become as short as absl's."""
  flags.mark_flags_as_required([_WORKDIR])
  try:
    config = None
    if not any(re.match("--?config(=|$)", text) for text in arguments):
      # The other flags say whether one is needed and where it is recorded.
      rest = flags.FLAGS(arguments, known_only=True)
      if _VERIFY.value:
        return rest
      config = recorded_config() if recorded_config else None
      if config is not None:
        # It defines the --config.FIELD flags.
        del flags.FLAGS.config
        config_files.DEFINE_config_dict("config", config)
    if config is None:
      flags.mark_flags_as_required([_CONFIG])
    rest = flags.FLAGS(arguments)
    _CONFIG.value.keys()  # A file that could not be read raises only now.
    return rest
  except (flags.Error, InputError) as error:
    sys.exit(f"error: {describe(_root_cause(error))}")
  except (AttributeError, KeyError) as error:
    message = str(error).strip("'\"").replace("\\n", " ").replace("\\'", "'")
    sys.exit(f"error: a --config.FIELD flag names no field: {message}")
  except OSError as error:
    sys.exit(f"error: {' '.join(str(error).split())}")


def _verify(workdir):
  """Prints what is wrong in a work directory; gives the exit status."""
  from cops_jax.runs import checkpoints
  from cops_jax.runs.record import read_record

  damage_of_steps = checkpoints.find_damage(workdir)
  for step, damage in damage_of_steps.items():
    print(f"step {step}: {'; '.join(damage) or 'good'}")
  is_good = not any(damage_of_steps.values())
  try:
    read_record(workdir)
  except InputError as error:
    is_good = False
    print(describe(error))
  return 0 if is_good else 1


def _root_cause(error):
  """The InputError of a config file, which ml_collections and absl wrap."""
  first, cause = error, error
  while cause := cause.__cause__ or cause.__context__:
    if isinstance(cause, InputError):
      first = cause
  return first


def _help(program, module, description):
  """The command's flags, and all fields of a config with their comments."""
  from cops_jax.config import recipe_names
  from cops_jax.fields import FIELDS

  def entry(name, text):
    return f"  {name}\n{textwrap.fill(text, 79, **indent)}"

  indent = {"initial_indent": " " * 6, "subsequent_indent": " " * 6}
  lines = [
    f"usage: {program} [--FLAG=VALUE ...]",
    "",
    description.rstrip(),
    "",
    "flags:",
  ]
  for source in (__name__, module):
    for flag in flags.FLAGS.get_flags_for_module(source):
      is_switch = isinstance(flag, flags.BooleanFlag)
      value = "" if is_switch else f"={flag.name.upper()}"
      lines.append(entry(f"--{flag.name}{value}", flag.help))
  lines += [
    "",
    "fields of the config, with their defaults, which the recipe or file of",
    "--config overrides, and these flags override both:",
  ]
  for name, field in FIELDS.items():
    lines.append(entry(f"--config.{name}={field.default}", field.comment))
  lines += ["", textwrap.fill(f"recipes: {', '.join(recipe_names())}", 79)]
  return "\n".join(lines)


def run(
  main: Callable[[ConfigDict, str, bool], None],
  program: str,
  module: str,
  description: str,
  recorded_config: Callable[[], ConfigDict] | None = None,
) -> None:
  """Calls a command's main with config, work directory and --allow_other_clip.

  Args:
    main: does the work.
    program: what a user calls, for --help.
    module: whose flags it shows, as absl names it.
    description: for --help.
    recorded_config: gives the config where --config is absent; called when the
      command's other flags have their values.

  An `InputError` ends the command with its message and exit status 1. With
  --verify the work directory is checked instead, and main not called. With
  --help neither happens.
  """
  if {"-h", "-help", "--help", "--helpfull"} & set(sys.argv[1:]):
    command_line(lambda _: print(_help(program, module, description)))()
    return

  def guarded(rest):
    command_line(lambda _: start(rest))()

  def start(rest):
    if len(rest) > 1:
      sys.exit(f"error: unexpected argument {rest[1]!r}")
    if _VERIFY.value:
      sys.exit(_verify(_WORKDIR.value))
    cluster = (
      _COORDINATOR_ADDRESS.value,
      _NUM_PROCESSES.value,
      _PROCESS_ID.value,
    )
    from cops_jax.runtime import processes, signals

    arguments = (_CONFIG.value, _WORKDIR.value, _ALLOW_OTHER_CLIP.value)
    if not _DISTRIBUTED.value and cluster == (None, None, None):
      return main(*arguments)
    processes.start(*cluster, _HEARTBEAT_TIMEOUT_SECONDS.value)
    try:
      main(*arguments)
    except Exception as error:
      if reason := processes.find_lost_peer(error):
        processes.end_process(
          "the processes cannot compute together any more, as when one of them"
          f" has ended ({reason}). This one ends too; the same command resumes"
          f" from the newest checkpoint (exit code {signals.EXIT_CODE})"
        )
      end_soon()  # An orderly exit waits for the other processes.
      raise

  show_messages()
  absl_logging.set_verbosity(absl_logging.WARNING)
  app.run(
    guarded,
    flags_parser=lambda arguments: _parse(arguments, recorded_config),
  )
