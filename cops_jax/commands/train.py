"""Trains prompts on an auxiliary data set, as config.method says.

  cops train --config=demo --workdir=runs/demo

Any field of the config can be set: --config.train.batch_size=16. SIGTERM and
Ctrl-C save and end with exit code 75; the same command again resumes an
interrupted run. --verify checks the checkpoints of a work directory instead.
"""

from __future__ import annotations

import logging

from absl import flags

from cops_jax.commands import config_flags
from cops_jax.runtime import signals

_logger = logging.getLogger(__name__)

_INIT_FROM = flags.DEFINE_string(
  "init_from",
  "",
  "Trained prompts to begin from: a work directory, the authors' epoch_N.pth,"
  " exported prompts, or published ones: a folder, or OWNER/NAME[@REVISION] on"
  " the Hugging Face hub. The optimizer starts fresh.",
)
_ALLOW_OTHER_DATA = flags.DEFINE_bool(
  "allow_other_data", False, "Go on with other images than the run began with."
)
_PROFILE_STEPS = flags.DEFINE_list(
  "profile_steps", [], "First and last step to profile, such as 10,12."
)


def _train(config, workdir, allow_other_clip):
  from cops_jax import training
  from cops_jax.errors import InputError

  try:
    profile_steps = [int(step) for step in _PROFILE_STEPS.value]
    if profile_steps:
      first, last = profile_steps
      if not 0 < first <= last:
        raise ValueError
  except ValueError as error:
    raise InputError(
      f"--profile_steps={','.join(_PROFILE_STEPS.value)}: expected the numbers"
      " of the first and the last step"
    ) from error
  training.train(
    config,
    workdir,
    init_from=_INIT_FROM.value,
    allow_other_clip=allow_other_clip,
    allow_other_data=_ALLOW_OTHER_DATA.value,
    profile_steps=profile_steps,
  )
  _logger.info(
    "training is finished; to evaluate it: cops evaluate --workdir=%s", workdir
  )


def main() -> None:
  """The command line."""
  signals.catch_signals()
  config_flags.run(_train, "cops train", __name__, __doc__)
