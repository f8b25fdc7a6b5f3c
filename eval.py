"""Evaluates trained prompts on data sets they have never seen.

  python eval.py --config=configs/demo.py --workdir=runs/demo

Prints a table; writes results.json, results.csv, scores.csv and pictures/ into
the work directory.
"""

from absl import flags
from ml_collections import config_flags

from cops_jax import cli

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Config file, see configs/.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Directory of a training run; receives the results."
)
flags.mark_flags_as_required(["config", "workdir"])


def main(_):
  from cops_jax import evaluation, reporting

  results, sheets = evaluation.evaluate(_CONFIG.value, _WORKDIR.value)
  print(reporting.format_table(results))
  for sheet in sheets:
    print(f"pictures: {sheet}")


if __name__ == "__main__":
  cli.run(main)
