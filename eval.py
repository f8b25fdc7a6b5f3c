"""Evaluates trained prompts on data sets they have never seen.

  python eval.py --workdir=runs/demo

Prints a table; writes results.json, results.csv, scores.csv and pictures/ into
the work directory. The config is the run's own, and fields can be set:
--config.evaluation.batch_size=4.
"""

from absl import flags

from cops_jax import cli

flags.adopt_module_key_flags(cli)

_CHECKPOINT = flags.DEFINE_string(
  "checkpoint",
  None,
  "Trained prompts: a work directory, the authors' epoch_N.pth, which needs a"
  " --config, or exported prompts. By default the work directory's own.",
)


def recorded_config():
  from configs import recorded

  return recorded.get_config(_CHECKPOINT.value or flags.FLAGS.workdir)


def main(config, workdir, allow_other_clip):
  from cops_jax import evaluation, reporting

  results, sheets = evaluation.evaluate(
    config,
    workdir,
    checkpoint=_CHECKPOINT.value,
    allow_other_clip=allow_other_clip,
  )
  print(reporting.format_table(results))
  for sheet in sheets:
    print(f"pictures: {sheet}")


if __name__ == "__main__":
  cli.run(main, recorded_config)
