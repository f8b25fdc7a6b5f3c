"""Evaluates trained prompts on data sets they have never seen.

  python eval.py --config=configs/demo.py --workdir=runs/demo

Prints a table; writes results.json, results.csv, scores.csv and pictures/ into
the work directory.
"""

from absl import flags

from cops_jax import cli

flags.adopt_module_key_flags(cli)


def main(config, workdir):
  from cops_jax import evaluation, reporting

  results, sheets = evaluation.evaluate(config, workdir)
  print(reporting.format_table(results))
  for sheet in sheets:
    print(f"pictures: {sheet}")


if __name__ == "__main__":
  cli.run(main)
