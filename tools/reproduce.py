"""Reproduces the papers' tables with one command.

  python -m tools.reproduce --manual_dir=DIR --workdir=runs/paper --seeds=0,1,2

DIR contains the original files, a folder for each data set. The command does
the following:

1. It reports missing data sets and where to get them. --dry_run stops here.
2. It prepares the data sets and computes the vision features once.
3. It trains both recipes of each method with every seed.
4. It evaluates each data set with prompts that were not trained on it. CoPS's
   prompts for VisA are trained on MVTec AD, those for all other data sets on
   VisA.

The results are table.txt, table.csv and table.json in --workdir, next to a run
directory for each recipe and seed. The table contains the papers' numbers, the
mean and standard deviation over the seeds, and the difference. Repeat the
command to resume. After a failure the remaining runs continue; failures are
reported at the end, with exit code 1.

Flags set fields of all recipes: --config.backbone.weights=ViT-L-14-336px.pt.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from cops_jax import methods
from cops_jax.commands import command_line, datasets, flags
from cops_jax.config import decides, recipe
from cops_jax.datasets import SPECIFICATIONS, preparation
from cops_jax.errors import InputError, UsageError
from cops_jax.field_types import Role
from cops_jax.paths import require_local
from cops_jax.progress import show_messages
from cops_jax.reporting.comparison import Row, Runs, compare, format_rows
from cops_jax.reporting.papers import paper_results
from cops_jax.runtime import signals
from cops_jax.tables import align
from cops_jax.weights.backbone import load_backbone
from cops_jax.weights.model import choose_dtype
from tools import runs

# Recipes by method. The first is evaluated on all data sets except the one that
# it was trained on, and the second on that one.
RECIPES = {
  "cops": ("visa", "mvtec"),
  "anomalyclip": ("anomalyclip_mvtec", "anomalyclip_visa"),
  "prompt_ensemble": ("prompt_ensemble",),
  "uniadet": ("uniadet_visa", "uniadet_mvtec"),
}


def make_configs(
  names: Sequence[str], evaluated: Sequence[str], overrides: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the recipes with the data sets that each is evaluated on.

  Vision features are cached in the type of the computation, once for all seeds.

  Args:
    names: names of methods.
    evaluated: data sets to evaluate on.
    overrides: values of config fields by dotted name. A recipe gets those that
      its method reads.

  Returns:
    ConfigDicts by recipe. Recipes with no data set to evaluate on are omitted.

  Raises:
    InputError: if a method has no table.
  """
  configs = {}
  for method in names:
    if method not in RECIPES:
      raise UsageError(
        f"there is no table of the method {method!r}. Choose from"
        f" {', '.join(RECIPES)}"
      )
    unread = methods.unread_fields(method)
    own = {
      name: value for name, value in overrides.items() if name not in unread
    }
    first = recipe(RECIPES[method][0])
    seen = first.train.dataset if runs.is_trained(first) else None
    for name in RECIPES[method]:
      config = recipe(name)
      config.evaluation.datasets = tuple(
        dataset
        for dataset in evaluated
        if (dataset == seen) == (name != RECIPES[method][0])
      )
      config.update_from_flattened_dict(own)
      config = choose_dtype(config, None)
      if "feature_cache.dtype" not in own:
        config.feature_cache.dtype = config.backbone.dtype
      if config.evaluation.datasets:
        configs[name] = config
  return configs


def needed_datasets(configs: Mapping[str, Any]) -> list[str]:
  """Returns all data sets for training or evaluation, each once."""
  names = {}
  for config in configs.values():
    if runs.is_trained(config):
      names[config.train.dataset] = None
    names |= dict.fromkeys(config.evaluation.datasets)
  return list(names)


def find_unprepared(
  names: Sequence[str], data_dir: str | None, manual_dir: str | None
) -> list[str]:
  """Returns the data sets that are not prepared yet.

  Raises:
    InputError: if a name is not one of the thirteen, data sets are missing, or
      original files are not as expected.
  """
  if manual_dir:
    require_local(manual_dir, "the folder of original files, --manual_dir,")
  unprepared, missing = [], []
  for name in names:
    if name not in SPECIFICATIONS:
      raise UsageError(
        f"{name!r} is not a data set of the tables. Choose from"
        f" {', '.join(SPECIFICATIONS)}"
      )
    row = SPECIFICATIONS[name]
    builder = preparation.make_builder(name, data_dir)
    if builder.data_path.exists():
      continue
    unprepared.append(name)
    if root := builder.find_original_files(manual_dir):
      row.read(root, row.categories)
    elif not row.url:
      missing.append((name, row.homepage, row.layout))
  if missing:
    table = align([("name", "where to get it", "files"), *missing], 3)
    raise InputError(
      f"{len(missing)} of {len(names)} data sets are missing. Unpack each into"
      " a folder of its name in --manual_dir, as `cops datasets list` shows, or"
      " choose other data sets with --datasets=NAMES\n" + "\n".join(table)
    )
  return unprepared


def make_rows(configs: Mapping[str, Any], found: Runs) -> list[Row]:
  """Returns rows from `comparison.compare` of the methods and their papers.

  The metrics are those of CoPS's paper and of the methods' papers. `configs`
  has ConfigDicts by recipe, and `found` is a result of `runs.run_all`.
  """
  merged = {}  # Results of both recipes by method and seed.
  for name, contents in found.items():
    seeds = merged.setdefault(configs[name].method, {})
    for seed, content in contents.items():
      both = seeds.setdefault(seed, {"datasets": {}})
      both["datasets"] |= content["datasets"]
  papers = {"cops": paper_results({"method": "cops"})} | {
    config.method: paper_results(config.to_dict())
    for config in configs.values()
  }
  reported = {
    metric
    for paper in papers.values()
    for results in paper.values()
    for metric in results
  }
  rows = compare(merged, papers=papers)
  return [row for row in rows if row.metric in reported]


def _format(rows, changed):
  text = format_rows(rows, "method", "paper")
  if changed:
    fields = ", ".join(f"{name}={value}" for name, value in changed.items())
    text += f"\nfields that differ from the papers' recipes: {fields}"
  unpublished = dict.fromkeys(
    row.dataset for row in rows if not row.is_comparable
  )
  if unpublished:
    text += (
      "\ndata sets without a difference, because they are not the published"
      f" images: {', '.join(unpublished)}"
    )
  return text


def _parser():
  parser = runs.make_parser("reproduce", __doc__)
  parser.add_argument(
    "--manual_dir",
    help="read original files from this folder, which has a folder for each"
    " data set",
  )
  known = ", ".join(RECIPES)
  for name, default, text in (
    ("methods", ["cops"], f"reproduce these of {known}; default cops"),
    ("datasets", [], "evaluate on these data sets; default all thirteen"),
  ):
    parser.add_argument(
      f"--{name}", type=flags.comma_list, default=default, help=text
    )
  parser.add_argument(
    "--dry_run", action="store_true", help="only list the runs and data sets"
  )
  return parser


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
  signals.catch_signals()
  options = _parser().parse_args(arguments)
  show_messages()
  if options.config:
    raise UsageError(
      "--config is not supported, because the recipes are those of the papers."
      " Set fields with --config.FIELD=VALUE"
    )
  overrides = flags.set_fields(options)
  if options.manual_dir:
    overrides["manual_dir"] = options.manual_dir
  places = overrides.get("data_dir"), overrides.get("manual_dir")
  evaluated = options.datasets or list(SPECIFICATIONS)
  configs = make_configs(options.methods, evaluated, overrides)
  needed = needed_datasets(configs)
  unprepared = find_unprepared(needed, *places)
  planned = [
    f"{name} ({seed})" for name, seed in runs.list_runs(configs, options.seeds)
  ]
  print(f"data sets: {', '.join(needed)}")
  print(f"data sets to prepare: {', '.join(unprepared) or 'none'}")
  print(f"{len(planned)} runs: {', '.join(planned)}", flush=True)
  if options.dry_run:
    return
  backbones = {config.backbone.weights: config for config in configs.values()}
  # Reports a missing backbone before anything is computed.
  for config in backbones.values():
    load_backbone(config)
  if unprepared:
    named = zip(("data_dir", "manual_dir"), places, strict=True)
    given = [f"--{name}={place}" for name, place in named if place]
    datasets.main(["prepare", *unprepared, *given])
  workdir = pathlib.Path(options.workdir)
  found, failures = runs.run_all(
    configs,
    workdir,
    options.seeds,
    allow_other_backbone=options.allow_other_backbone,
  )
  if found:
    changed = {
      name: value
      for name, value in overrides.items()
      if decides(name, Role.TRAINING) or decides(name, Role.RESULTS)
    }
    rows = make_rows(configs, found)
    table = _format(rows, changed)
    runs.write_table(workdir, rows, table, found, failures, overrides=changed)
  runs.exit_on_failures(failures)


if __name__ == "__main__":
  main()
