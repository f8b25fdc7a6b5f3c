"""The time that a run spends on each activity, and the speed of its steps."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Iterator, Mapping

from cops_jax.runs.metrics_log import TIME_PREFIX


class Stopwatch:
  """Adds up the seconds that a run spends on each activity.

  Attributes:
    seconds: seconds spent, by name of the activity.
  """

  def __init__(self):
    self._began = time.monotonic()
    self.seconds: collections.Counter[str] = collections.Counter()

  @contextlib.contextmanager
  def spend(self, name: str) -> Iterator[None]:
    """Adds the time in the context; contexts must not be nested."""
    began = time.monotonic()
    try:
      yield
    finally:
      self.seconds[name] += time.monotonic() - began

  def describe(self) -> str:
    """Returns one line with the total and its parts, the largest first."""
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
  """Returns the speed of steps, excluding other activities between them.

  Args:
    spent: seconds of "steps", and seconds that devices waited for "input".
    num_steps: number of steps in that time.
    step_images: number of images in a step.
    peak_rate: images per second at the devices' peak rate; 0 if unknown.

  Returns:
    time/images_per_second, time/step_seconds, time/input_share (the share of
    time spent waiting for input) and, if the peak is known, time/mfu (the share
    of the peak that was reached).
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
  """Returns the result of `measure_speed` in a few words."""
  words = (
    f"{1000 * speed[TIME_PREFIX + 'step_seconds']:.0f} ms per step,"
    f" {speed[TIME_PREFIX + 'input_share']:.0%} waiting for input"
  )
  mfu = speed.get(f"{TIME_PREFIX}mfu")
  return words if mfu is None else f"{words}, MFU {mfu:.0%}"
