"""Trains prompts on an auxiliary data set.

  cops train --config=demo --workdir=runs/demo

A flag sets any field of the config: --config.train.batch_size=16. On SIGTERM
and Ctrl-C, training saves a checkpoint and ends with exit code 75. The same
command resumes an interrupted run. With --verify, it only checks the record and
the checkpoints in the run directory.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from cops_jax.commands import command_line, flags, make_parser
from cops_jax.errors import InputError
from cops_jax.progress import show_messages
from cops_jax.runtime import signals

_logger = logging.getLogger(__name__)


def _parser() -> argparse.ArgumentParser:
  parser = make_parser("train", __doc__)
  text = "write checkpoints and logs to this run directory; resume a run in it"
  flags.add(parser, "--workdir", required=True, help=text)
  flags.add(parser, "--allow_other_backbone", **flags.BOOL)
  parser.add_argument(
    "--init_from",
    default="",
    metavar="PROMPTS",
    help="start from trained prompts instead of random ones: a run directory, a"
    " file of `cops weights save`, an epoch_N.pth of the methods' authors, or a"
    " value that --pretrained of other commands accepts, such as cops-visa; the"
    " optimizer starts fresh",
  )
  parser.add_argument(
    "--allow_other_data",
    **flags.BOOL,
    help="resume even if the images have changed since the run began",
  )
  parser.add_argument(
    "--profile_steps",
    type=_parse_steps,
    default=(),
    metavar="FIRST,LAST",
    help="profile these steps, such as 10,12; default: none",
  )
  parser.add_argument(
    "--verify",
    **flags.BOOL,
    help="check the files of the run directory instead of training; needs no"
    " --config",
  )
  flags.add_cluster(parser)
  flags.add_config(parser)
  return parser


def _parse_steps(text):
  try:
    first, last = map(int, text.split(","))
    if 0 < first <= last:
      return first, last
  except ValueError:
    pass
  raise argparse.ArgumentTypeError(
    f"{text!r} is not the first and the last step, such as 10,12"
  )


def _verify(workdir):
  """Prints the state of a run's checkpoints; returns the exit status."""
  from cops_jax.runs import checkpoints
  from cops_jax.runs.record import read_record

  damage_of_steps = checkpoints.find_damage(workdir)
  for step, damage in damage_of_steps.items():
    print(f"step {step}: {'; '.join(damage) or 'good'}")
  try:
    read_record(workdir)
  except InputError as error:
    print(error)
    return 1
  return 1 if any(damage_of_steps.values()) else 0


@command_line
def main(arguments: Sequence[str] | None = None) -> int | None:
  signals.catch_signals()
  options = _parser().parse_args(arguments)
  show_messages()
  if options.verify:
    return _verify(options.workdir)
  config = flags.read_config(options)
  with flags.cluster(options):
    from cops_jax import training

    training.train(
      config,
      options.workdir,
      init_from=options.init_from,
      allow_other_backbone=options.allow_other_backbone,
      allow_other_data=options.allow_other_data,
      profile_steps=options.profile_steps,
    )
    _logger.info(
      "training is finished; evaluate it with: cops evaluate --workdir=%s",
      options.workdir,
    )
