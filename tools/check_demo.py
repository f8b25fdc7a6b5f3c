"""Checks that the demo's result is in its known range.

  python -m tools.check_demo --workdir=runs/demo

The range in configs/demo.py covers seeds and kinds of processors. The exit code
is 1 if a metric is outside.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

from configs.demo import EXPECTED_PERCENT
from cops_jax.commands import TOOL, command_line, make_parser
from cops_jax.metrics import METRICS
from cops_jax.reporting import tables


def check(mean: Mapping[str, float]) -> tuple[bool, str]:
  """Returns True if the metrics, in [0, 1], are as expected; and a report."""
  is_expected, texts = True, []
  for metric, (low, high) in EXPECTED_PERCENT.items():
    value = round(100 * mean[metric], 1)
    is_inside = low <= value <= high  # False for NaN.
    is_expected &= is_inside
    texts.append(
      f"{METRICS[metric]} {value:.1f} is"
      f" {'within' if is_inside else 'OUTSIDE'} {low} to {high}"
    )
  verdict = "as expected" if is_expected else "NOT as expected"
  return is_expected, f"The demo's result is {verdict}: {', '.join(texts)}."


@command_line
def main(arguments: Sequence[str] | None = None) -> int:
  parser = make_parser("check_demo", __doc__, TOOL)
  parser.add_argument(
    "--workdir", required=True, help="check the demo in this run directory"
  )
  options = parser.parse_args(arguments)
  means = tables.means_of(tables.read_results(pathlib.Path(options.workdir)))
  is_expected, line = check(means["demo_unseen"])
  print(line)
  return 0 if is_expected else 1


if __name__ == "__main__":
  raise SystemExit(main())
