"""Runs that are stopped, killed or damaged resume as if nothing had happened.

Real signals end real processes. `make soak` kills many more.
"""

import json
import os
import random
import resource
import shutil
import signal
import time

import pytest

from cops_jax.runs.checkpoints import find_damage, find_steps
from cops_jax.runs.metrics_log import read_metrics
from helpers.cluster import end_cluster, start_cluster
from helpers.runs import flip, leaves
from helpers.scripts import Program, run, start_afresh


def assert_same_run(workdir, whole):
  """Compares loss terms, parameters and optimizer state bit by bit."""
  assert read_metrics(workdir) == read_metrics(whole)
  (step,) = {find_steps(workdir)[-1], find_steps(whole)[-1]}
  for item in ("params", "opt_state"):
    assert leaves(workdir, step, item) == leaves(whole, step, item)
  assert not any(find_damage(workdir).values())


def test_a_run_that_ends_early_resumes_as_if_it_had_not(
  trained, arguments, tmp_path
):
  """A full disk, SIGTERM, SIGKILL and a flipped bit end the run in turn."""
  command = (
    *("train.py", *arguments, f"--workdir={tmp_path}"),
    "--config.train.checkpoint_every_steps=2",
  )

  def start_and_save():
    """Starts the command and waits until it has saved another checkpoint."""
    before = find_steps(tmp_path)
    process = Program(*command)
    while find_steps(tmp_path) == before:
      assert process.poll() is None
      time.sleep(0.01)
    return process

  process = start_and_save()
  resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (5_000, 5_000))
  _, err = process.communicate(timeout=60)  # Orbax's threads do not block it.
  assert process.returncode == 1, err
  assert "File too large" in err and "Traceback" not in err
  assert "the same command resumes from the newest" in err

  process = start_and_save()
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 75, err
  step = find_steps(tmp_path)[-1]
  assert f"stopped after step {step} of 9, which is saved" in err
  assert "Traceback" not in err and step < 9

  process = start_and_save()
  process.kill()
  _, err = process.communicate(timeout=60)
  assert process.returncode == -signal.SIGKILL
  assert f"resuming {tmp_path} from step {step}" in err
  code, _, err = run(*command)
  assert code == 0, err
  assert_same_run(tmp_path, trained[0])

  verify = ["train.py", f"--workdir={tmp_path}", "--verify"]
  expected = "".join(f"step {step}: good\n" for step in find_steps(tmp_path))
  assert run(*verify)[:2] == (0, expected)
  flip(tmp_path / "checkpoints" / "9" / "params" / "manifest.ocdbt")
  code, out, _ = run(*verify)
  assert code == 1
  assert "step 8: good\nstep 9: params/manifest.ocdbt has the SHA-256" in out
  code, _, err = run(*command)
  assert code == 0, err
  assert "checkpoints/9: params/manifest.ocdbt has the SHA-256" in err
  assert "from step 8" in err
  assert (tmp_path / "checkpoints" / "9.damaged").is_dir()
  assert_same_run(tmp_path, trained[0])


def test_evaluation_shows_results_that_cannot_be_written(trained, tmp_path):
  """The run's newest checkpoint is damaged, too."""
  workdir = tmp_path / "run"
  shutil.copytree(trained[0], workdir, ignore=shutil.ignore_patterns("*.csv"))
  flip(workdir / "checkpoints" / "9" / "params" / "manifest.ocdbt")
  before = sorted(workdir.rglob("*"))
  for folder, _, _ in os.walk(workdir):
    os.chmod(folder, 0o555)
  code, out, err = run_obeying("eval.py", f"--workdir={workdir}")
  assert code == 1, err
  assert "skipping the damaged checkpoint" in err
  assert "results.json cannot be written: Permission denied" in err
  assert "demo_unseen  mean" in out
  assert sorted(workdir.rglob("*")) == before


# Runs a program as root without root's right to write anywhere.
OBEY_PERMISSIONS = """
import ctypes, os, sys
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1
ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def run_obeying(*arguments):
  with start_afresh("-c", OBEY_PERMISSIONS, *arguments) as process:
    out, err = process.communicate(timeout=300)
  return process.returncode, out, err


@pytest.mark.soak
@pytest.mark.parametrize("num_processes", (1, 2))
def test_a_run_killed_at_random_ends_as_an_uninterrupted_one(
  num_processes, arguments, tmp_path
):
  """Signals arrive at random times, about half of them during a save."""
  arguments = [*arguments, "--config.train.num_epochs=12"]
  arguments.append("--config.train.checkpoint_every_steps=3")
  whole, workdir = tmp_path / "whole", tmp_path / "run"
  assert play(arguments, whole, num_processes)[0] == [0] * num_processes
  rng = random.Random(time.time_ns())
  counts = {"SIGKILL": 0, "SIGTERM": 0, "while saving": 0, "ended before": 0}
  log = []
  while sum(counts[name] for name in ("SIGKILL", "SIGTERM")) < 24:
    number = rng.choice((signal.SIGKILL, signal.SIGTERM))
    codes, phase, err = play(arguments, workdir, num_processes, rng, number)
    log.append((number.name, phase, codes, find_steps(workdir)))
    print(json.dumps(log[-1]), flush=True)
    if set(codes) == {0}:  # The run is complete: compare it and start again.
      assert_same_run(workdir, whole)
      shutil.rmtree(workdir)
      counts["ended before"] += 1
      continue
    counts[number.name] += 1
    counts["while saving"] += phase == "saving"
    if number == signal.SIGTERM:
      assert set(codes) <= {75, -signal.SIGTERM}, err
    else:  # The other processes end without a signal.
      ends = {0, 75, -signal.SIGABRT}
      assert set(codes) - ends == {-signal.SIGKILL}, err
    if workdir.exists() and find_steps(workdir):
      assert not any(find_damage(workdir).values())
  codes, _, err = play(arguments, workdir, num_processes)
  assert set(codes) == {0}, err
  assert_same_run(workdir, whole)
  print(json.dumps(counts))
  assert counts["while saving"] >= 4
  assert min(counts["SIGKILL"], counts["SIGTERM"]) >= 4


def play(arguments, workdir, num_processes, rng=None, number=None):
  """Trains in a cluster and, with `number`, signals one process at random.

  Returns:
    Exit codes, the phase of the run at the signal, and all messages.
  """
  processes = start_cluster(
    *(num_processes, 2, "train.py", *arguments, f"--workdir={workdir}")
  )
  phase = ""
  if number is not None:
    phase = wait_at_random(workdir, processes, rng)
    rng.choice(processes).send_signal(number)
  codes, logs = end_cluster(processes)
  return codes, phase, "\n".join(logs)


def wait_at_random(workdir, processes, rng):
  """Waits for a random moment of starting, training or saving; names it."""
  saved = workdir / "checkpoints"
  before = set(os.listdir(saved)) if saved.exists() else set()
  kinds = ("starting", "training", "saving", "saving")
  # Until all processes have started, JAX waits for up to five minutes.
  kind = rng.choice(kinds[len(processes) > 1 :])
  if kind == "starting":
    time.sleep(rng.uniform(0, 10))
    return kind
  passing = rng.randint(0, 6)
  while all(process.poll() is None for process in processes):
    names = set(os.listdir(saved)) if saved.exists() else set()
    is_saving = any("orbax" in name for name in names - before)
    if kind == "training" and len(names - before) > passing % 3:
      time.sleep(rng.uniform(0, 0.3))
      return kind
    if kind == "saving" and is_saving:
      if not passing:
        time.sleep(rng.uniform(0, 0.05))
        return kind
      passing -= 1
      time.sleep(0.1)
  return "ended"
