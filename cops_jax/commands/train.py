"""Trains prompts on an auxiliary data set, as config.method says.

  cops train --config=demo --workdir=runs/demo

Any field of the config can be set: --config.train.batch_size=16. SIGTERM and
Ctrl-C save and end with exit code 75; the same command again resumes an
interrupted run. --verify checks the checkpoints of a work directory instead.
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
  flags.add(parser, "--workdir", required=True)
  flags.add(parser, "--allow_other_backbone", **flags.BOOL)
  parser.add_argument(
    "--init_from",
    default="",
    help="trained prompts to begin from: a work directory, the authors'"
    " epoch_N.pth, saved prompts, or what --pretrained of other commands takes,"
    " such as cops-visa; the optimizer starts fresh",
  )
  parser.add_argument(
    "--allow_other_data",
    **flags.BOOL,
    help="resume with other images than the run began with",
  )
  parser.add_argument(
    "--profile_steps",
    type=_parse_steps,
    default=(),
    help="first and last step to profile, such as 10,12",
  )
  parser.add_argument(
    "--verify",
    **flags.BOOL,
    help="only check the work directory's files; needs no --config",
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
    f"{text!r}: expected the numbers of the first and the last step"
  )


def _verify(workdir):
  """Prints what is wrong in a work directory; returns the exit status."""
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
      "training is finished; to evaluate it: cops evaluate --workdir=%s",
      options.workdir,
    )
