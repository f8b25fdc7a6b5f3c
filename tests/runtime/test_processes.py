"""Real processes that form one cluster on this host."""

import json
import resource
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import optax
import pytest

from cops_jax import training
from cops_jax.errors import InputError
from cops_jax.runs.checkpoints import Checkpoints, find_steps
from cops_jax.runtime import processes as distributed
from helpers.config import make_config
from helpers.scripts import ROOT, environment


def free_port():
  with socket.socket() as one:
    one.bind(("127.0.0.1", 0))
    return one.getsockname()[1]


def start_cluster(num_processes, num_devices, *arguments):
  """train.py in several processes."""
  address = f"--coordinator_address=127.0.0.1:{free_port()}"
  flags = f"--xla_force_host_platform_device_count={num_devices}"
  return [
    subprocess.Popen(
      [
        *(sys.executable, "train.py", *arguments, address),
        f"--num_processes={num_processes}",
        f"--process_id={index}",
      ],
      cwd=ROOT,
      env=environment(XLA_FLAGS=flags),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(num_processes)
  ]


def end_cluster(processes):
  """Exit codes and messages."""
  results = [process.communicate(timeout=300) for process in processes]
  codes = [process.returncode for process in processes]
  return codes, [err for _, err in results]


def metrics(workdir):
  text = (workdir / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def params(workdir):
  with Checkpoints(workdir) as saved:
    step, tree = saved.restore_params()
  assert step == 20
  return jax.device_get(tree)


@pytest.fixture(scope="module")
def one(clip_folder, data_dir, tmp_path_factory):
  """20 steps in this process, on 8 devices."""
  config = make_config(clip_folder, data_dir)
  config.train.batch_size = 29
  config.train.log_every_steps = 1
  config.train.checkpoint_every_steps = 20
  config.train.evaluate_every_steps = 20
  workdir = tmp_path_factory.mktemp("one")
  training.train(config, workdir, profile_steps=(2, 3))
  assert list((workdir / "profile").rglob("*.xplane.pb"))
  return workdir


STEPS = (
  "--config.train.batch_size=29",
  "--config.train.log_every_steps=1",
)


def assert_same_numbers(workdir, whole):
  rows, other_rows = metrics(whole), metrics(workdir)
  assert [row["step"] for row in rows] == [*range(1, 21), 20]
  # The last is what was evaluated, which not all do.
  assert len(other_rows) >= 20
  for row, other in zip(rows, other_rows, strict=False):
    assert row.keys() == other.keys()
    for name in row.keys() - {"gradient_norm"}:
      # What was evaluated counts ranks, which change one at a time.
      tolerance = 1e-3 if "/" in name else 1e-5
      want = pytest.approx(row[name], rel=tolerance, abs=1e-5)
      assert other[name] == want, name
  assert "demo_unseen/pixel_auroc" in rows[-1]
  ours, other = params(whole), params(workdir)
  difference = jax.tree.map(np.subtract, ours, other)
  assert optax.tree.norm(difference) <= 1e-4 * optax.tree.norm(ours)


def test_two_processes_train_and_evaluate_as_one(one, arguments, tmp_path):
  """2 processes of 4 devices."""
  two = tmp_path / "two"
  arguments = (
    *arguments,
    *STEPS,
    "--config.train.checkpoint_every_steps=20",
    "--config.train.evaluate_every_steps=20",
  )
  cluster = start_cluster(2, 4, *arguments, f"--workdir={two}")
  codes, (log, silence) = end_cluster(cluster)
  assert codes == [0, 0], log + silence
  assert "8 cpu device(s) of 2 process(es)" in log
  assert "cpu device(s)" not in silence
  assert_same_numbers(two, one)
  assert metrics(two)[-1].keys() == metrics(one)[-1].keys()
  names = {path.name for path in one.iterdir()} - {"profile"}
  assert {path.name for path in two.iterdir()} == names


def test_a_signal_to_one_process_stops_all(one, arguments, tmp_path):
  """After the same step; then they go on. On features that both computed."""
  workdir = tmp_path / "run"
  arguments = (
    *arguments,
    *STEPS,
    "--config.train.checkpoint_every_steps=3",
    "--config.train.cache_features=float32",
    f"--config.features_dir={tmp_path}/features",
    f"--workdir={workdir}",
  )
  cluster = start_cluster(2, 1, *arguments)
  while not (workdir / "checkpoints" / "3").exists():
    assert all(process.poll() is None for process in cluster)
    time.sleep(0.05)
  cluster[1].send_signal(signal.SIGTERM)
  codes, logs = end_cluster(cluster)
  assert codes == [75, 75], logs
  step = find_steps(workdir)[-1]
  assert step < 20
  for log in logs:
    assert f"stopped after step {step} of 20, which is saved" in log
    assert "Traceback" not in log
  assert "computing features of demo_auxiliary, part 1 of 2: 288/288" in logs[0]
  names = [path.name for path in (tmp_path / "features").glob("*/*.array*")]
  assert sorted(names) == [f"{part}-of-2-00001.array_record" for part in (1, 2)]

  codes, logs = end_cluster(start_cluster(2, 1, *arguments))
  assert codes == [0, 0], logs
  assert f"from step {step}" in logs[0]
  assert "features of demo_auxiliary are read from" in logs[0]
  assert_same_numbers(workdir, one)


def test_a_full_disk_stops_all(arguments, tmp_path):
  """Only the first process notices."""
  workdir = tmp_path / "run"
  arguments = (*arguments, *STEPS, "--config.train.checkpoint_every_steps=3")
  cluster = start_cluster(2, 1, *arguments, f"--workdir={workdir}")
  while not (workdir / "checkpoints" / "3").exists():
    assert all(process.poll() is None for process in cluster)
    time.sleep(0.05)
  resource.prlimit(cluster[0].pid, resource.RLIMIT_FSIZE, (5_000, 5_000))
  codes, logs = end_cluster(cluster)
  assert codes == [1, 1], logs
  for log, reason in zip(
    logs, ("File too large", "the first process says why"), strict=True
  ):
    assert f"written in {workdir}/checkpoints: {reason}. The newest is" in log
    assert "Traceback" not in log
  assert find_steps(workdir) == [3]


@pytest.mark.parametrize(
  "arguments, expected",
  (
    (("host:1", None, 0), "^--num_processes must be given too"),
    ((None, 2, None), "^--coordinator_address and --process_id must be"),
    (("host:1", 2, 2), "--process_id is 2; with 2 processes it must be from 0"),
    ((None, None, None), "did not come together as one cluster"),
  ),
)
def test_bad_arguments(arguments, expected):
  with pytest.raises(InputError, match=expected):
    distributed.start(*arguments)
