"""The command line of benchmarks: measures, and prints a table."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata

import jax

from benchmarks.timing import Row
from cops_jax.tables import align


def cells(section: str, row: Row) -> tuple[str, ...]:
  """A line of the table."""
  seconds = spread = ""
  if row.seconds is not None:
    seconds = f"{row.seconds:.3g}"
    spread = " - ".join(f"{value:.3g}" for value in row.spread)
  return section, row.what, seconds, spread, row.note


def run(sections: Mapping[str, Callable[[bool], Iterator[Row]]]) -> None:
  """The command line of some sections."""
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks", description="Prints how fast it is here."
  )
  parser.add_argument(
    "--quick", action="store_true", help="small sizes, few repetitions"
  )
  is_quick = parser.parse_args().quick
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
