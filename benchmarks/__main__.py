"""How fast it is here: one table, with ratios measured in one run.

  python -m benchmarks
  python -m benchmarks --quick    (small, with the demo's model)

Let nothing run beside it. `benchmarks.metrics` and `benchmarks.input_pipeline`
measure more, each on its own.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata

import jax

from benchmarks import (
  evaluation,
  input_pipeline,
  metrics,
  saving,
  startup,
  training,
)
from benchmarks.timing import Row
from cops_jax.tables import align

_SECTIONS = {
  "startup": startup.rows,
  "evaluation": evaluation.rows,
  "training": training.rows,
  "saving": saving.rows,
  "input pipeline": input_pipeline.rows,
  "metrics": metrics.rows,
}


def cells(section: str, row: Row) -> tuple[str, ...]:
  """A line of the table."""
  seconds = spread = ""
  if row.seconds is not None:
    seconds = f"{row.seconds:.3g}"
    spread = " - ".join(f"{value:.3g}" for value in row.spread)
  return section, row.what, seconds, spread, row.note


def run(
  sections: Mapping[str, Callable[[bool], Iterator[Row]]] = _SECTIONS,
  arguments: Sequence[str] | None = None,
) -> None:
  """The command line of some sections."""
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks", description=__doc__.partition("\n")[0]
  )
  parser.add_argument(
    "--quick", action="store_true", help="small sizes, few repetitions"
  )
  is_quick = parser.parse_args(arguments).quick
  found = []
  for name, measure in sections.items():
    for row in measure(is_quick):
      found.append(cells(name, row))
      print(*found[-1], file=sys.stderr, flush=True)  # Before the table.
  device = jax.devices()[0]
  versions = ", ".join(
    f"{name} {metadata.version(name)}" for name in ("cops_jax", "jax", "jaxlib")
  )
  print(
    f"{device.device_kind}, {os.cpu_count()} cores, {platform.machine()};"
    f" {versions}; seconds: median, fastest to slowest"
  )
  for line in align(found, 5):
    print(line)


if __name__ == "__main__":
  run()
