"""Trains CoPS's prompts on an auxiliary data set.

  python train.py --config=configs/demo.py --workdir=runs/demo

Any field of the config can be set: --config.train.batch_size=16.
"""

from absl import flags
from ml_collections import config_flags

from cops_jax import cli

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Config file, see configs/.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Directory for checkpoints and logs."
)
flags.mark_flags_as_required(["config", "workdir"])


def main(_):
  from cops_jax import training

  training.train(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
  cli.run(main)
