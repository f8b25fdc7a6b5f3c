"""Signals to processes that do nothing else."""

import signal
import subprocess
import sys

import pytest

from helpers.scripts import ROOT

SCRIPT = """
import time
from cops_jax.runtime import signals

signals._TRAINING_SECONDS = 1
signals.{catch}()
if {is_deferred}:
  signals.defer()
print("ready", flush=True)
while {is_deferred} and signals._noted is None:
  time.sleep(0.01)
print("noted", flush=True)
time.sleep(60)
"""


def start(is_deferred, catch="catch_signals"):
  process = subprocess.Popen(
    [sys.executable, "-c", SCRIPT.format(is_deferred=is_deferred, catch=catch)],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "ready\n"
  return process


@pytest.mark.parametrize("name", ("SIGTERM", "SIGINT"))
def test_before_training_the_process_ends_at_once(name):
  process = start(is_deferred=False)
  process.send_signal(signal.Signals[name])
  _, err = process.communicate(timeout=20)
  assert process.returncode == 75
  assert f"stopped by {name}; nothing is lost" in err
  assert "Traceback" not in err


@pytest.mark.parametrize("name", ("SIGTERM", "SIGINT"))
def test_in_training_a_signal_is_recorded_and_a_second_ctrl_c_kills(name):
  process = start(is_deferred=True)
  process.send_signal(signal.Signals[name])
  assert process.stdout.readline() == "noted\n"
  process.send_signal(signal.SIGTERM)  # This has no further effect.
  process.send_signal(signal.SIGINT)
  _, err = process.communicate(timeout=20)
  assert process.returncode == -signal.SIGINT
  assert f"{name}: stopping after this step" in err
  assert "Traceback" not in err


def test_a_waiting_process_of_a_cluster_ends_after_a_signal():
  process = start(is_deferred=True, catch="watch")
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=20)
  assert process.returncode == 75
  assert "stopped by a signal while it waited for other processes" in err
