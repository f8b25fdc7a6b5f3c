"""Times of repeated calls, and rows of the benchmarks' table."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of the table.

  Attributes:
    what: was measured.
    seconds: its median, or None where that is no time.
    spread: from the fastest to the slowest, in seconds.
    note: rates and ratios, with what was measured in the same run.
  """

  what: str
  seconds: float | None = None
  spread: tuple[float, float] | None = None
  note: str = ""


def measure(call: Callable[[], Any], repeats: int) -> np.ndarray:
  """Seconds of each call, after one that does not count."""
  jax.block_until_ready(call())
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(call())
    seconds.append(time.perf_counter() - start)
  return np.array(seconds)


def row(what: str, seconds: np.ndarray, note: str = "") -> Row:
  """The row of some measured times."""
  return Row(
    what, float(np.median(seconds)), (seconds.min(), seconds.max()), note
  )
