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
import sys

from absl import flags
from ml_collections import config_flags as config_files

from cops_jax.commands import config_flags
from cops_jax.config import decides, recipe
from cops_jax.errors import InputError
from cops_jax.fields import Role
from cops_jax.runtime import signals
from tools import runs

flags.adopt_module_key_flags(config_flags)

_MANUAL_DIR = flags.DEFINE_string(
  "manual_dir", None, "Original files, a folder of its name for each data set."
)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds to train each recipe with.")
_METHODS = flags.DEFINE_list(
  "methods", ["cops"], "Of cops, anomalyclip and prompt_ensemble."
)
_DATASETS = flags.DEFINE_list(
  "datasets", [], "To evaluate; by default all thirteen."
)
_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Only say what is missing and what it takes."
)


def main(config, workdir, allow_other_clip):
  from cops_jax import weights
  from cops_jax.datasets import SPECIFICATIONS
  from tools.reproduce import needs, plan, report

  overrides = _overrides(config)
  names = _DATASETS.value or list(SPECIFICATIONS)
  configs = plan.make_configs(_METHODS.value, names, overrides)
  seeds = runs.parse_seeds(_SEEDS.value)
  places = config.data_dir or None, config.manual_dir or None
  found = needs.find_data(plan.needed_datasets(configs), *places)
  clip = weights.clip_of(config)
  workdir = pathlib.Path(workdir)
  if _DRY_RUN.value or not any((workdir / name).exists() for name in configs):
    planned = runs.list_runs(configs, seeds)
    print(needs.describe(configs, planned, found, clip), flush=True)
  if _DRY_RUN.value:
    return
  unprepared = [name for name in found if found[name].state != needs.PREPARED]
  if unprepared:
    _prepare(unprepared, *places)
  results, failures = runs.run_all(
    configs, workdir, seeds, allow_other_clip=allow_other_clip
  )
  if results:
    changed = {
      name: value
      for name, value in overrides.items()
      if decides(name, Role.TRAINING) or decides(name, Role.RESULTS)
    }
    report.write(workdir, configs, changed, results, failures)
  runs.exit_on_failures(failures)


def _overrides(config):
  """Returns the fields that were set on the command line, by name."""
  overrides = config_files.get_override_values(flags.FLAGS["config"])
  expected = recipe("visa")
  expected.update_from_flattened_dict(overrides)
  if config.to_dict() != expected.to_dict():
    raise InputError(
      "--config is not read here: the recipes are those of the papers. Set"
      " fields with --config.FIELD=VALUE"
    )
  if _MANUAL_DIR.value:
    config.manual_dir = overrides["manual_dir"] = _MANUAL_DIR.value
  return overrides


def _prepare(names, data_dir, manual_dir):
  from cops_jax.commands import datasets

  arguments = ["prepare", *names]
  arguments += [f"--data_dir={data_dir}"] * bool(data_dir)
  arguments += [f"--manual_dir={manual_dir}"] * bool(manual_dir)
  datasets.main(arguments)


if __name__ == "__main__":
  signals.catch_signals()
  config_flags.run(
    *(main, "python -m tools.reproduce", sys.argv[0], __doc__),
    lambda: recipe("visa"),
  )
