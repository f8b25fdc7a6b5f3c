"""Measures speed on this machine and prints one table.

  python -m benchmarks
  python -m benchmarks --quick    (small, with the demo's model)
  python -m benchmarks evaluation training

Run nothing else at the same time. Each ratio compares measurements of one run.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
from importlib import metadata

import jax
import numpy as np

from cops_jax.tables import align

SECTIONS = (
  *("startup", "evaluation", "training", "saving", "input_pipeline"),
  "metrics",
)


def _cells(section, row):
  """Returns the cells of a line of the table."""
  median = spread = ""
  if row.seconds is not None:
    median = f"{np.median(row.seconds):.3g}"
    spread = f"{row.seconds.min():.3g} - {row.seconds.max():.3g}"
  return section, row.what, median, spread, row.note


def main() -> None:
  """Measures the sections that the command line names, and prints the table."""
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks",
    description="Measures speed on this machine and prints one table.",
  )
  parser.add_argument(
    "sections",
    nargs="*",
    help=f"measure only these of {', '.join(SECTIONS)}; default all",
  )
  parser.add_argument(
    "--quick",
    action="store_true",
    help="use small sizes and few repetitions",
  )
  options = parser.parse_args()
  if unknown := set(options.sections) - set(SECTIONS):
    parser.error(
      f"unknown sections {', '.join(sorted(unknown))}. Choose from"
      f" {', '.join(SECTIONS)}"
    )
  found = []
  for name in options.sections or SECTIONS:
    section = importlib.import_module(f"benchmarks.{name}")
    for row in section.rows(options.quick):
      found.append(_cells(name, row))
      # Shows progress until the table is complete.
      print(*found[-1], file=sys.stderr, flush=True)
  device = jax.devices()[0]
  versions = ", ".join(
    f"{name} {metadata.version(name)}" for name in ("cops_jax", "jax", "jaxlib")
  )
  print(
    f"{device.device_kind}, {os.cpu_count()} cores, {platform.machine()};"
    f" {versions}; times in seconds: median, fastest - slowest"
  )
  print("\n".join(align(found, 5)))


if __name__ == "__main__":
  main()
