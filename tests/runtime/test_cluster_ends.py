"""The processes of a cluster end together."""

import collections
import random
import shutil
import signal
import time

import pytest

from cops_jax.runs.checkpoints import find_damage, find_steps
from cops_jax.runs.metrics_log import read_metrics
from helpers.cluster import end_cluster, free_port, start_cluster
from helpers.images import write_folder
from helpers.scripts import environment, run, start_afresh


@pytest.fixture
def start(arguments, tmp_path):
  """Starts training in two processes, and waits for a checkpoint."""
  images = write_folder(tmp_path / "nuts", 29)
  workdir = tmp_path / "run"

  def start_training(*flags):
    cluster = start_cluster(
      *(2, 1, "train.py", *arguments, f"--workdir={workdir}", *flags),
      *(f"--config.train.dataset={images}", "--config.train.batch_size=2"),
      *("--config.train.num_epochs=1000", "--config.train.log_every_steps=50"),
      "--config.train.checkpoint_every_steps=20",
    )
    while not (workdir / "checkpoints/20/manifest.json").exists():
      assert all(process.poll() is None for process in cluster)
      time.sleep(0.05)
    return workdir, cluster

  return start_training


@pytest.mark.parametrize("killed", (0, 1))
def test_the_other_process_ends_if_one_is_killed(start, killed):
  workdir, cluster = start()
  cluster[killed].kill()
  began = time.monotonic()
  codes, logs = end_cluster(cluster)
  assert time.monotonic() - began < 60
  assert codes[killed] == -signal.SIGKILL, logs
  assert codes[1 - killed] in (75, -signal.SIGABRT), logs
  if codes[1 - killed] == 75:
    sentence = logs[1 - killed].splitlines()[-1]
    assert sentence.startswith("the processes cannot compute together any more")
    assert "the same command resumes from the newest checkpoint" in sentence
    assert "Traceback" not in logs[1 - killed]
  assert not find_damage(workdir)[find_steps(workdir)[-1]]


def test_the_other_process_ends_if_one_is_stopped(start):
  """JAX aborts it after the heartbeat's timeout; launch files restart it."""
  _, cluster = start("--heartbeat_timeout_seconds=5")
  cluster[1].send_signal(signal.SIGSTOP)
  try:
    assert cluster[0].wait(timeout=60) in (75, -signal.SIGABRT)
  finally:
    cluster[1].send_signal(signal.SIGCONT)
  codes, logs = end_cluster(cluster)
  assert codes[1] in (75, -signal.SIGABRT), logs


FAIL = """
import sys
from cops_jax import commands
from cops_jax.commands import train
from cops_jax.training import loop

def fail(*_):
  raise KeyError("made")

commands._EXIT_SECONDS = 2
if "--process_id=1" in sys.argv:
  loop.shard_batch = fail
train.main()
"""


def test_the_other_process_ends_if_one_fails(arguments, tmp_path):
  address = f"--coordinator_address=127.0.0.1:{free_port()}"
  pair = [
    start_afresh(
      *("-c", FAIL, *arguments, f"--workdir={tmp_path}", address),
      *("--num_processes=2", f"--process_id={process}"),
      env=environment(num_devices=1),
    )
    for process in range(2)
  ]
  errors = [process.communicate(timeout=120)[1] for process in pair]
  assert pair[1].returncode == 1 and "KeyError: 'made'" in errors[1]
  assert pair[0].returncode in (75, -signal.SIGABRT), errors[0]


@pytest.mark.soak
@pytest.mark.parametrize("script", ("train.py", "eval.py"))
def test_any_process_killed_at_any_time(arguments, tmp_path, script):
  """From when they have met; then the same command does what is left."""
  rng = random.Random(time.time_ns())
  nuts, bolts = (
    write_folder(tmp_path / name, 29) for name in ("nuts", "bolts")
  )
  features, workdir = tmp_path / "features", tmp_path / "run"
  flags = (
    f"--workdir={workdir}",
    f"--config.features_dir={features}",
    f"--config.evaluation.datasets=('{nuts}','{bolts}')",
    "--config.feature_cache.dtype=float32",
  )
  training = (
    *(*arguments, *flags, f"--config.train.dataset={nuts}"),
    *("--config.train.batch_size=2", "--config.train.num_epochs=10"),
    "--config.train.evaluate_every_steps=50",
  )
  if script == "eval.py":
    code, _, err = run("train.py", *training)
    assert code == 0, err
  command = (script, *(training if script == "train.py" else flags))
  start = tmp_path / "start"
  if workdir.exists():
    shutil.copytree(workdir, start)

  def begin_again():
    for folder in (workdir, features):
      shutil.rmtree(folder, ignore_errors=True)
    if start.exists():
      shutil.copytree(start, workdir)

  def outcome():
    paths = [workdir / "scores.csv"]
    written = [path.read_bytes() for path in paths if path.exists()]
    return read_metrics(workdir), written

  begin_again()
  began = time.monotonic()
  codes, logs = end_cluster(start_cluster(2, 1, *command))
  assert codes == [0, 0], logs
  duration, whole = time.monotonic() - began, outcome()
  begin_again()
  num_kills, ends = 0, collections.Counter()
  while num_kills < 20:
    cluster = start_cluster(2, 1, *command)
    time.sleep(rng.uniform(0.4, 1) * duration)
    killed = rng.choice((0, 1))
    if any(process.poll() is not None for process in cluster):
      assert end_cluster(cluster)[0] == [0, 0]
      assert outcome() == whole
      begin_again()
      continue
    cluster[killed].kill()
    began = time.monotonic()
    codes, logs = end_cluster(cluster)
    seconds = time.monotonic() - began
    log = logs[1 - killed]
    assert seconds < 120, logs
    assert codes[1 - killed] in (0, 75, -signal.SIGABRT), logs
    if codes[1 - killed] == 75:
      assert "cannot compute together" in log and "Traceback" not in log, log
    num_kills += 1
    if script == "eval.py" and num_kills % 2:  # It keeps what it has done.
      begin_again()
    ends[codes[1 - killed]] += 1
    print(f"killed {killed}, the other ended after {seconds:.1f} s", ends)
  codes, logs = end_cluster(start_cluster(2, 1, *command))
  assert codes == [0, 0], logs
  assert outcome() == whole
