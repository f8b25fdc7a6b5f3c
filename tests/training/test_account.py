"""Where the time goes, by a clock that is turned by hand."""

import pytest

from cops_jax.training.account import (
  Account,
  Speed,
  account_for_input,
  describe_speed,
)


class Clock:
  now = 100.0

  def __call__(self):
    return self.now


@pytest.fixture
def clock():
  return Clock()


def test_what_is_spent_within_counts_once(clock):
  account = Account(clock)
  clock.now += 1
  with account.spend("evaluating"):
    clock.now += 2
    with account.spend("saving"):
      clock.now += 4
    clock.now += 8
  clock.now += 16
  assert account.seconds("evaluating") == 10
  assert account.seconds("saving") == 4
  assert account.seconds("saving", "evaluating") == 14
  assert account.seconds() == 31
  assert account.describe() == (
    "31.0 s: evaluating 10.0 s, saving 4.0 s, the rest 17.0 s"
  )


def test_only_what_devices_wait_for_is_input(clock):
  """Of three batches the first is waited for, and the last one at its end."""
  account, idle = Account(clock), [True, False, True]

  def batches():
    for seconds in (1, 2, 4):
      clock.now += seconds
      yield seconds
    clock.now += 8

  rest = iter(idle)
  for _ in account_for_input(batches(), account, lambda: next(rest)):
    with account.spend("saving"):
      clock.now += 100
  assert account.seconds("input") == 1 + 4
  assert account.seconds("steps") == 2 + 8
  assert account.seconds("saving") == 300


def test_speed_is_of_the_steps_alone(clock):
  account = Account(clock)
  speed = Speed(account, 5, 40, flops=3e9, peak_flops=1e12)

  def pass_time(steps, waiting):
    with account.spend("steps"):
      clock.now += steps
    with account.spend("input"):
      clock.now += waiting
    with account.spend("saving"):
      clock.now += 1000

  pass_time(3.0, 1.0)
  found = speed.measure(7, 56)
  assert found == {
    "time/images_per_second": 4.0,
    "time/step_seconds": 2.0,
    "time/input_share": 0.25,
    "time/mfu": 0.012,
  }
  assert describe_speed(found) == (
    "2000 ms a step, 25% waiting for input, MFU 1%"
  )
  pass_time(1.0, 0.0)
  assert speed.measure(8, 64)["time/step_seconds"] == 1.0


def test_without_a_known_peak_there_is_no_mfu(clock):
  account = Account(clock)
  speed = Speed(account, 0, 0, flops=1.0, peak_flops=None)
  found = speed.measure(1, 1)
  assert "time/mfu" not in found and "MFU" not in describe_speed(found)
