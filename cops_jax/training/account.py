"""Where a run's time goes, and how fast it is."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

from cops_jax.runs.metrics_log import TIME_PREFIX


class Account:
  """Seconds by what they were spent on.

  Args:
    clock: gives seconds.
  """

  def __init__(self, clock: Callable[[], float] = time.monotonic):
    self._clock = clock
    self._began = self._since = clock()
    self._spent: dict[str, float] = {}
    self._doing: list[str] = []

  @contextlib.contextmanager
  def spend(self, what: str) -> Iterator[None]:
    """Counts the time within it, but for what is spent on something else."""
    self._close()
    self._doing.append(what)
    try:
      yield
    finally:
      self._close()
      self._doing.pop()

  def move(self, seconds: float, source: str, to: str) -> None:
    """Counts some seconds as spent on something else."""
    self._spent[source] -= seconds
    self._spent[to] = self._spent.get(to, 0) + seconds

  def seconds(self, *names: str) -> float:
    """Spent on some things so far; without names, in all."""
    self._close()
    if not names:
      return self._since - self._began
    return sum((self._spent.get(name, 0.0) for name in names), 0.0)

  def describe(self) -> str:
    """One line: the whole, and its parts, the largest first."""
    total = self.seconds()
    parts = sorted(self._spent.items(), key=lambda item: -item[1])
    rest = total - sum(self._spent.values())
    words = [f"{name} {seconds:.1f} s" for name, seconds in parts]
    return f"{total:.1f} s: {', '.join([*words, f'the rest {rest:.1f} s'])}"

  def _close(self):
    now = self._clock()
    if self._doing:
      name = self._doing[-1]
      self._spent[name] = self._spent.get(name, 0) + now - self._since
    self._since = now


def account_for_input(
  batches: Generator[Any, None, None],
  account: Account,
  is_idle: Callable[[], bool],
) -> Iterator[Any]:
  """The batches; time spent waiting for them counts as "input".

  But only if the devices had finished all they were given by then: while they
  compute, nobody waits.

  Args:
    batches: of which the first is waited for anyway.
    account: counts the rest of the time here as "steps".
    is_idle: whether the devices have nothing to do.
  """
  with contextlib.closing(batches):
    while True:
      before = account.seconds("steps")
      with account.spend("steps"):
        try:
          batch = next(batches)
        except StopIteration:
          return
      if is_idle():
        seconds = account.seconds("steps") - before
        account.move(seconds, "steps", "input")
      yield batch


class Speed:
  """How fast training goes.

  Args:
    account: in which "input" and "steps" are counted.
    first_step, first_image: what was done before.
    flops: that an image needs.
    peak_flops: a second, of all devices; None if that is not known.
  """

  def __init__(
    self,
    account: Account,
    first_step: int,
    first_image: int,
    flops: float,
    peak_flops: float | None,
  ):
    self._account = account
    self._flops, self._peak_flops = flops, peak_flops
    self._before = (first_step, first_image, *self._seconds())

  def measure(self, step: int, image: int) -> dict[str, float]:
    """Since the last call, whatever was done between the steps.

    Args:
      step, image: steps taken and images seen.

    Returns:
      time/images_per_second, time/step_seconds, time/input_share (of the time
      in which the devices waited for a batch) and, if the peak is known,
      time/mfu (the share of it that the needed operations make use of).
    """
    now = (step, image, *self._seconds())
    steps, images, busy, waiting = (
      new - old for new, old in zip(now, self._before, strict=True)
    )
    self._before = now
    elapsed = max(busy + waiting, 1e-9)
    found = {
      "images_per_second": images / elapsed,
      "step_seconds": elapsed / max(steps, 1),
      "input_share": waiting / elapsed,
    }
    if self._peak_flops:
      found["mfu"] = images * self._flops / elapsed / self._peak_flops
    return {
      f"{TIME_PREFIX}{name}": float(f"{found[name]:.4g}") for name in found
    }

  def _seconds(self):
    return self._account.seconds("steps"), self._account.seconds("input")


def describe_speed(speed: Mapping[str, float]) -> str:
  """`Speed.measure`'s values in words."""
  words = (
    f"{1000 * speed[TIME_PREFIX + 'step_seconds']:.0f} ms a step,"
    f" {speed[TIME_PREFIX + 'input_share']:.0%} waiting for input"
  )
  mfu = speed.get(f"{TIME_PREFIX}mfu")
  return words if mfu is None else f"{words}, MFU {mfu:.0%}"
