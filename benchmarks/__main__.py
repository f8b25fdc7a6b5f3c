"""How fast it is here: one table, with ratios measured in one run.

  python -m benchmarks
  python -m benchmarks --quick    (small, with the demo's model)
  python -m benchmarks evaluation training

Let nothing run beside it.
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
  """Returns a line of the table."""
  median = spread = ""
  if row.seconds is not None:
    median = f"{np.median(row.seconds):.3g}"
    spread = f"{row.seconds.min():.3g} - {row.seconds.max():.3g}"
  return section, row.what, median, spread, row.note


def main() -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks", description="Prints how fast it is here."
  )
  parser.add_argument("sections", nargs="*", help=", ".join(SECTIONS))
  parser.add_argument(
    "--quick", action="store_true", help="small sizes, few repetitions"
  )
  options = parser.parse_args()
  if unknown := set(options.sections) - set(SECTIONS):
    parser.error(f"no such section: {', '.join(sorted(unknown))}")
  found = []
  for name in options.sections or SECTIONS:
    section = importlib.import_module(f"benchmarks.{name}")
    for row in section.rows(options.quick):
      found.append(_cells(name, row))
      print(*found[-1], file=sys.stderr, flush=True)  # Before the table.
  device = jax.devices()[0]
  versions = ", ".join(
    f"{name} {metadata.version(name)}" for name in ("cops_jax", "jax", "jaxlib")
  )
  print(
    f"{device.device_kind}, {os.cpu_count()} cores, {platform.machine()};"
    f" {versions}; seconds: median, fastest to slowest"
  )
  print("\n".join(align(found, 5)))


if __name__ == "__main__":
  main()
