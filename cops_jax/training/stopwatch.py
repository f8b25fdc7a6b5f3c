"""Measures how a run spends its time and how fast its steps are."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Iterator, Mapping

from cops_jax.runs.metrics_log import TIME_PREFIX


class Stopwatch:
  """Adds up seconds, from when it is made.

  Attributes:
    seconds: by what they were spent on.
  """

  def __init__(self):
    self._began = time.monotonic()
    self.seconds: collections.Counter[str] = collections.Counter()

  @contextlib.contextmanager
  def spend(self, name: str) -> Iterator[None]:
    """Counts the time within it; not to be nested."""
    began = time.monotonic()
    try:
      yield
    finally:
      self.seconds[name] += time.monotonic() - began

  def describe(self) -> str:
    """Returns the total and its parts, the largest first, on one line."""
    total = time.monotonic() - self._began
    rest = total - self.seconds.total()
    parts = [*self.seconds.most_common(), ("the rest", rest)]
    words = (f"{name} {seconds:.1f} s" for name, seconds in parts)
    return f"{total:.1f} s: {', '.join(words)}"


def measure_speed(
  spent: Mapping[str, float],
  num_steps: int,
  step_images: float,
  peak_rate: float,
) -> dict[str, float]:
  """Measures some steps, without what was done between them.

  Args:
    spent: seconds that "steps" took and that devices waited for "input".
    num_steps: in that time.
    step_images: images in a step.
    peak_rate: images a second at the devices' peak; 0 if it is not known.

  Returns:
    time/images_per_second, time/step_seconds, time/input_share (of the seconds)
    and, if the peak is known, time/mfu (the share of it that is reached).
  """
  seconds = max(spent["steps"] + spent["input"], 1e-9)
  rate = num_steps * step_images / seconds
  found = {
    "images_per_second": rate,
    "step_seconds": seconds / num_steps,
    "input_share": spent["input"] / seconds,
  }
  if peak_rate:
    found["mfu"] = rate / peak_rate
  return {
    f"{TIME_PREFIX}{name}": float(f"{value:.4g}")
    for name, value in found.items()
  }


def describe_speed(speed: Mapping[str, float]) -> str:
  """Describes what `measure_speed` returned in a few words."""
  words = (
    f"{1000 * speed[TIME_PREFIX + 'step_seconds']:.0f} ms a step,"
    f" {speed[TIME_PREFIX + 'input_share']:.0%} waiting for input"
  )
  mfu = speed.get(f"{TIME_PREFIX}mfu")
  return words if mfu is None else f"{words}, MFU {mfu:.0%}"
