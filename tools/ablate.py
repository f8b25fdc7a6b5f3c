"""Trains and evaluates the full model and every ablation, and compares them.

  python -m tools.ablate --workdir=runs/ablations --seeds=0,1,2

Prints a table and writes table.txt, table.csv, table.json and table.png into
the work directory, beside a run's directory for each ablation and seed. In
brackets is the difference to the full model. The same command again skips what
is finished. After a failure the other runs continue; failures are reported at
the end, with exit code 1. The config is the demo's; another's ablations:
--config=configs/visa.py. Fields can be set: --config.train.b1=0.9.
"""

from __future__ import annotations

import io
import pathlib
from collections.abc import Sequence

import numpy as np

from configs import ablations
from cops_jax.commands import command_line, flags, make_parser
from cops_jax.files import write_file
from cops_jax.progress import show_messages
from cops_jax.reporting.comparison import Row, compare, format_rows
from cops_jax.reporting.tables import metric_title
from cops_jax.runtime import signals
from tools import runs

_BASE = "full"  # The others are compared with it.


def plot(rows: Sequence[Row]) -> bytes:
  """Returns a PNG file: a dot for each run, and their mean as a line.

  A panel is a metric, a row of panels the image or pixel metrics of a data set.
  """
  from matplotlib.figure import Figure

  names = list(dict.fromkeys(row.name for row in rows))
  panels = {}
  for row in rows:
    place = row.dataset, row.metric.split("_")[0]
    panels.setdefault(place, {}).setdefault(row.metric, []).append(row)
  num_columns = max(map(len, panels.values()))
  size = 1.8 + 2.6 * num_columns, (1.2 + 0.3 * len(names)) * len(panels)
  figure = Figure(figsize=size, layout="constrained")
  grid = figure.subplots(len(panels), num_columns, sharey=True, squeeze=False)
  for ((dataset, _), metrics), line in zip(panels.items(), grid, strict=True):
    line[0].set_ylabel(dataset)
    for axes in line[len(metrics) :]:
      axes.remove()
    for (metric, found), axes in zip(metrics.items(), line, strict=False):
      axes.set_title(f"{metric_title(metric)}, %")
      axes.set_yticks(range(len(names)), [n.replace("_", " ") for n in names])
      axes.set_ylim(len(names) - 0.5, -0.5)
      axes.grid(axis="x", alpha=0.3)
      for row in found:
        values = 100 * np.array(list(row.values.values()))
        y = names.index(row.name)
        axes.plot(values, np.full(len(values), y), "o", color="C0", alpha=0.5)
        axes.plot(values.mean(), y, "|k", markersize=16, markeredgewidth=2)
        if row.name == _BASE:
          axes.axvline(values.mean(), color="gray", linewidth=0.8)
  file = io.BytesIO()
  figure.savefig(file, format="png", dpi=100)
  return file.getvalue()


def _parser():
  parser = make_parser("ablate", __doc__)
  parser.prog = "python -m tools.ablate"
  flags.add(parser, "--workdir", required=True)
  flags.add(parser, "--allow_other_clip")
  parser.add_argument(
    "--seeds",
    type=flags.comma_list,
    default=["0"],
    help="seeds to train each one with",
  )
  parser.add_argument(
    "--only",
    type=flags.comma_list,
    default=list(ablations.ABLATIONS),
    help="names of the ablations to compare",
  )
  flags.add_config(parser)
  return parser


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
  """The command line."""
  signals.catch_signals()
  options = flags.parse(_parser(), arguments)
  show_messages()
  config = flags.read_config(options, ablations.get_config)
  seeds = runs.parse_seeds(options.seeds)
  workdir = pathlib.Path(options.workdir)
  configs = {name: ablations.ablate(config, name) for name in options.only}
  found, failures = runs.run_all(
    configs, workdir, seeds, allow_other_clip=options.allow_other_clip
  )
  if found:
    rows = compare(found, base=_BASE)
    table = format_rows(rows, "ablation")
    overrides = {name: ablations.ABLATIONS[name] for name in configs}
    runs.write_table(workdir, rows, table, found, failures, overrides=overrides)
    write_file(workdir / "table.png", plot(rows))
  runs.exit_on_failures(failures)


if __name__ == "__main__":
  main()
