"""Trains CoPS's prompts on an auxiliary data set.

  python train.py --config=configs/demo.py --workdir=runs/demo

Any field of the config can be set: --config.train.batch_size=16. The same
command again resumes an interrupted run.
"""

from absl import flags

from cops_jax import cli

flags.adopt_module_key_flags(cli)


def main(config, workdir):
  from cops_jax import training

  training.train(config, workdir)


if __name__ == "__main__":
  cli.run(main)
