"""Shares that were counted, and what they say of those that were not."""

from __future__ import annotations

import dataclasses
import math

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
  """A proportion with its interval at `CONFIDENCE`.

  The interval is the exact one (Clopper and Pearson, Biometrika 1934): true to
  its word for few images and for none counted, where the normal approximation
  is not.

  Args:
    count: from 0 to total.
    total: at least 1.

  Raises:
    ValueError: they are not.
  """
  if not 0 <= count <= total or not total:
    raise ValueError(f"{count} of {total} is no proportion")
  from scipy import stats  # Slow to import.

  interval = stats.binomtest(count, total).proportion_ci(CONFIDENCE, "exact")
  return Proportion(count, total, float(interval.low), float(interval.high))


def least_total(share: float) -> int:
  """The least number of which none must be counted to show so small a share.

  Args:
    share: above 0, below 1; that the interval's upper end must not exceed.
  """
  return math.ceil(math.log((1 - CONFIDENCE) / 2) / math.log1p(-share))
