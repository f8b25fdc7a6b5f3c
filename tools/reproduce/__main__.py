"""The papers' table in one command.

  python -m tools.reproduce --manual_dir=DIR --workdir=runs/paper --seeds=0,1,2

DIR holds the data sets as their publishers ship them, a folder of its name for
each. What is missing is said first, with where to get it; then what disk,
memory and time it takes, which is all that --dry_run does. Then the data sets
are prepared, vision features computed once, both recipes of each method trained
with every seed, and each data set evaluated with prompts that were not trained
on it: by CoPS all with VisA's, and VisA with MVTec AD's. After an interruption
the same command resumes.

Writes report.html, table.txt, table.csv and table.json into the work directory,
beside a run's directory for each recipe and seed: the papers' numbers, ours as
mean and standard deviation over the seeds, and the difference. After a failure
the other runs continue; failures are reported at the end, with exit code 1.

Fields can be set for all recipes: --config.clip.weights=ViT-L-14-336px.pt.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from cops_jax.commands import command_line, flags, make_parser
from cops_jax.config import decides, recipe
from cops_jax.errors import InputError
from cops_jax.fields import Role
from cops_jax.progress import show_messages
from cops_jax.runtime import signals
from tools import runs


def _parser():
  parser = make_parser("reproduce", __doc__)
  parser.prog = "python -m tools.reproduce"
  flags.add(parser, "--workdir", required=True)
  flags.add(parser, "--allow_other_clip")
  parser.add_argument(
    "--manual_dir",
    help="original files, a folder of its name for each data set",
  )
  for name, default, text in (
    ("seeds", ["0"], "seeds to train each recipe with"),
    ("methods", ["cops"], "of cops, anomalyclip and prompt_ensemble"),
    ("datasets", [], "to evaluate; by default all thirteen"),
  ):
    parser.add_argument(
      f"--{name}", type=flags.comma_list, default=default, help=text
    )
  parser.add_argument(
    "--dry_run",
    action="store_true",
    help="only say what is missing and what it takes",
  )
  flags.add_config(parser)
  return parser


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
  """The command line."""
  signals.catch_signals()
  options = flags.parse(_parser(), arguments)
  show_messages()
  config, overrides = _read_config(options)
  from cops_jax import weights
  from cops_jax.datasets import SPECIFICATIONS
  from tools.reproduce import needs, plan, report

  names = options.datasets or list(SPECIFICATIONS)
  configs = plan.make_configs(options.methods, names, overrides)
  seeds = runs.parse_seeds(options.seeds)
  places = config.data_dir or None, config.manual_dir or None
  found = needs.find_data(plan.needed_datasets(configs), *places)
  clip = weights.clip_of(config)
  workdir = pathlib.Path(options.workdir)
  if options.dry_run or not any((workdir / name).exists() for name in configs):
    planned = runs.list_runs(configs, seeds)
    print(needs.describe(configs, planned, found, clip), flush=True)
  if options.dry_run:
    return
  unprepared = [name for name in found if found[name].state != needs.PREPARED]
  if unprepared:
    _prepare(unprepared, *places)
  results, failures = runs.run_all(
    configs, workdir, seeds, allow_other_clip=options.allow_other_clip
  )
  if results:
    changed = {
      name: value
      for name, value in overrides.items()
      if decides(name, Role.TRAINING) or decides(name, Role.RESULTS)
    }
    report.write(workdir, configs, changed, results, failures)
  runs.exit_on_failures(failures)


def _read_config(options):
  """Returns a config, and the fields that flags set by dotted name."""
  if options.config:
    raise InputError(
      "--config is not read here: the recipes are those of the papers. Set"
      " fields with --config.FIELD=VALUE"
    )
  overrides = flags.set_fields(options)
  if options.manual_dir:
    overrides["manual_dir"] = options.manual_dir
  config = recipe("visa")
  config.update_from_flattened_dict(overrides)
  return config, overrides


def _prepare(names, data_dir, manual_dir):
  from cops_jax.commands import datasets

  arguments = ["prepare", *names]
  arguments += [f"--data_dir={data_dir}"] * bool(data_dir)
  arguments += [f"--manual_dir={manual_dir}"] * bool(manual_dir)
  datasets.main(arguments)


if __name__ == "__main__":
  main()
