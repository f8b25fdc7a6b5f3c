"""Shares that were counted, and what they say of those that were not."""

from __future__ import annotations

import dataclasses

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Proportion:
  """How many of some images were counted, such as false alarms.

  Attributes:
    count: of those that were.
    total: of all.
    low, high: confidence interval of the share among images of their kind.
  """

  count: int
  total: int
  low: float
  high: float

  def __str__(self) -> str:
    return (
      f"{self.count} of {self.total}, {self.count / self.total:.1%}"
      f" ({CONFIDENCE:.0%} interval {self.low:.1%} to {self.high:.1%})"
    )


def estimate(count: int, total: int) -> Proportion:
  """Returns a proportion with its exact interval at `CONFIDENCE`.

  The normal approximation would be wrong for few images and for none counted
  (Clopper and Pearson, Biometrika 1934).

  Args:
    count: from 0 to total.
    total: at least 1.
  """
  from scipy import stats  # Slow to import.

  interval = stats.binomtest(count, total).proportion_ci(CONFIDENCE, "exact")
  return Proportion(count, total, float(interval.low), float(interval.high))
