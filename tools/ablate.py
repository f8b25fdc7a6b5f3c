"""Trains and evaluates the full model and every ablation, and compares them.

  python -m tools.ablate --workdir=runs/ablations --seeds=0,1,2

Prints a table and writes ablations.txt, .csv, .json and .png into the work
directory, beside a run's directory for each ablation and seed. The same command
again skips what is finished. After a failure the other runs go on; failures are
reported at the end, with exit code 1. The config is the demo's; another's
ablations: --config=configs/visa.py. Fields can be set: --config.train.b1=0.9.
"""

from __future__ import annotations

import csv
import io
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from configs import ablations
from cops_jax import __version__
from cops_jax.commands import config_flags
from cops_jax.errors import InputError
from cops_jax.files import write_file
from cops_jax.reporting import metric_title
from cops_jax.runtime import signals
from cops_jax.tables import align
from tools.runs import Means, parse_seeds, run_configs

flags.adopt_module_key_flags(config_flags)

_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds to train each one with.")
_ONLY = flags.DEFINE_list(
  "only", list(ablations.ABLATIONS), "Names of the ablations to compare."
)

_BASE = "full"  # What the others are compared with.
# Columns of ablations.csv: these, then each metric's name with each suffix.
_FIRST_COLUMNS = ("dataset", "ablation", "num_seeds")
_SUFFIXES = ("_std", "_difference")


def run_all(
  config: Any,
  workdir: pathlib.Path,
  names: Sequence[str],
  seeds: Sequence[int],
  *,
  allow_other_clip: bool = False,
) -> tuple[dict[str, dict[int, Means]], dict[str, str]]:
  """`run_configs` of a config's ablations, by their names."""
  configs = {name: ablations.ablate(config, name) for name in names}
  runs = [(name, seed) for seed in seeds for name in names]
  return run_configs(configs, workdir, runs, allow_other_clip=allow_other_clip)


def compare(means: Mapping[str, Mapping[int, Means]]) -> list[dict[str, Any]]:
  """A row for each data set and ablation: statistics over the seeds.

  Each metric has its mean, with two or more seeds its standard deviation in
  NAME_std, and in NAME_difference the mean difference to the full model, over
  the seeds that both have. What is undefined is left out.
  """
  datasets = dict.fromkeys(
    dataset
    for runs in means.values()
    for run in runs.values()
    for dataset in run
  )
  rows = []
  for dataset in datasets:
    base = {seed: run[dataset] for seed, run in means.get(_BASE, {}).items()}
    for name, runs in means.items():
      row = {"dataset": dataset, "ablation": name, "num_seeds": len(runs)}
      own = {seed: run[dataset] for seed, run in runs.items()}
      for metric in dict.fromkeys(key for run in own.values() for key in run):
        values = [run[metric] for run in own.values() if metric in run]
        row[metric] = float(np.mean(values))
        if len(values) > 1:
          row[f"{metric}_std"] = float(np.std(values, ddof=1))
        differences = [
          own[seed][metric] - base[seed][metric]
          for seed in own.keys() & base.keys()
          if metric in own[seed] and metric in base[seed]
        ]
        if name != _BASE and differences:
          row[f"{metric}_difference"] = float(np.mean(differences))
      rows.append(row)
  return rows


def _metrics(rows):
  return [
    name
    for name in dict.fromkeys(name for row in rows for name in row)
    if name not in _FIRST_COLUMNS and not name.endswith(_SUFFIXES)
  ]


def format_table(
  rows: Sequence[Mapping[str, Any]], title: str = "ablation"
) -> str:
  """A table to read, in percent, differences in percentage points.

  Args:
    rows: of `compare`.
    title: of the names' column.
  """
  metrics = _metrics(rows)
  has_base = any(row["ablation"] == _BASE for row in rows)
  header = ["data set", title, "seeds"]
  for metric in metrics:
    header += [metric_title(metric), *["diff"] * has_base]
  lines = [header]
  for row in rows:
    line = [row["dataset"], row["ablation"], str(row["num_seeds"])]
    for metric in metrics:
      value, std, difference = (
        row.get(metric + suffix) for suffix in ("", *_SUFFIXES)
      )
      text = "n/a" if value is None else f"{100 * value:.1f}"
      line.append(text if std is None else f"{text} ± {100 * std:.1f}")
      if has_base:
        line.append("" if difference is None else f"{100 * difference:+.1f}")
    lines.append(line)
  return "\n".join(align(lines, num_text_columns=2))


def format_csv(rows: Sequence[Mapping[str, Any]]) -> str:
  """All of `compare`'s fields, in [0, 1]; what is undefined is empty."""
  file = io.StringIO()
  columns = [
    metric + suffix for metric in _metrics(rows) for suffix in ("", *_SUFFIXES)
  ]
  writer = csv.DictWriter(
    file, (*_FIRST_COLUMNS, *columns), lineterminator="\n"
  )
  writer.writeheader()
  writer.writerows(rows)
  return file.getvalue()


def plot(
  means: Mapping[str, Mapping[int, Means]], rows: Sequence[Mapping[str, Any]]
) -> bytes:
  """Two rows for each data set, of images and of pixels, a panel a metric.

  A panel has a dot for each seed, and their mean.

  Returns:
    A PNG file's bytes.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  names = list(means)
  panels = []  # Data set and metrics of each row.
  for dataset in dict.fromkeys(row["dataset"] for row in rows):
    for level in dict.fromkeys(name.split("_")[0] for name in _metrics(rows)):
      metrics = [name for name in _metrics(rows) if name.startswith(level)]
      panels.append((dataset, metrics))
  num_columns = max(len(metrics) for _, metrics in panels)
  figure = Figure(
    figsize=(
      1.8 + 2.6 * num_columns,
      0.5 + (1.0 + 0.3 * len(names)) * len(panels),
    ),
    layout="constrained",
  )
  FigureCanvasAgg(figure)
  axes = figure.subplots(len(panels), num_columns, sharey=True, squeeze=False)
  for (dataset, metrics), row_of_axes in zip(panels, axes, strict=True):
    row_of_axes[0].set_ylabel(dataset)
    for axis in row_of_axes[len(metrics) :]:
      axis.remove()
    for metric, axis in zip(metrics, row_of_axes, strict=False):
      _plot_metric(axis, means, rows, dataset, metric)
      labels = [name.replace("_", " ") for name in names]
      axis.set_yticks(range(len(names)), labels)
      axis.set_ylim(len(names) - 0.5, -0.5)
      axis.set_title(f"{metric_title(metric)}, %")
      axis.grid(axis="x", alpha=0.3)
  shown = {}  # The first of each kind: a panel may lack some.
  for axis in figure.axes:
    for line, label in zip(*axis.get_legend_handles_labels(), strict=True):
      shown.setdefault(label, line)
  figure.legend(
    shown.values(), shown, loc="outside upper center", ncols=3, frameon=False
  )
  file = io.BytesIO()
  figure.savefig(file, format="png", dpi=100)
  return file.getvalue()


def _plot_metric(axis, means, rows, dataset, metric):
  """The dots of each ablation, at its place in `means`."""
  for row in rows:
    name = row["ablation"]
    if row["dataset"] != dataset or metric not in row:
      continue
    y, mean = list(means).index(name), 100 * row[metric]
    values = [run[dataset].get(metric) for run in means[name].values()]
    values = [100 * value for value in values if value is not None]
    axis.plot(
      values, [y] * len(values), "o", color="C0", alpha=0.5, label="a seed"
    )
    axis.plot(
      *(mean, y, "|k"),
      markersize=16,
      markeredgewidth=2,
      label="mean of the seeds",
    )
    if name == _BASE:
      axis.axvline(mean, color="gray", linewidth=0.8, label="full model's mean")


def main(config, workdir, allow_other_clip):
  import jax

  if jax.process_count() > 1:
    raise InputError("ablations are compared in one process, not in a cluster")
  seeds = parse_seeds(_SEEDS.value)
  workdir = pathlib.Path(workdir)
  means, failures = run_all(
    config, workdir, _ONLY.value, seeds, allow_other_clip=allow_other_clip
  )
  rows = compare(means)
  if rows:
    table = format_table(rows)
    content = {
      "version": __version__,
      "overrides": {name: ablations.ABLATIONS[name] for name in means},
      "rows": rows,
      "runs": means,
      "failures": failures,
    }
    write_file(workdir / "ablations.txt", table + "\n")
    write_file(workdir / "ablations.csv", format_csv(rows))
    write_file(workdir / "ablations.json", json.dumps(content, indent=2) + "\n")
    write_file(workdir / "ablations.png", plot(means, rows))
    print(table)
    print(f"plot: {workdir / 'ablations.png'}")
  if failures:
    sys.exit(
      "\n".join(f"failed: {name}: {why}" for name, why in failures.items())
    )


if __name__ == "__main__":
  signals.catch_signals()
  config_flags.run(
    *(main, "python -m tools.ablate", sys.argv[0], __doc__),
    ablations.get_config,
  )
