"""Real processes that form one cluster on this host."""

import resource
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from cops_jax import training, weights
from cops_jax.errors import InputError
from cops_jax.runs.checkpoints import Checkpoints, find_damage, find_steps
from cops_jax.runs.metrics_log import read_metrics
from cops_jax.runtime import processes as distributed
from cops_jax.runtime.randomness import INIT_KEY, random_key
from helpers.cluster import end_cluster, free_port, start_cluster
from helpers.config import make_config
from helpers.images import write_folder
from helpers.scripts import start_afresh
from helpers.steps import SMOOTH, assert_same_way


def params(workdir):
  with Checkpoints(workdir) as saved:
    step, tree = saved.restore_params()
  assert step == 20
  return jax.device_get(tree)


# Four epochs of five steps; the last one of each is not full.
SETTINGS = {"batch_size": 6, "num_epochs": 4, **SMOOTH}
STEPS = (
  *(f"--config.train.{name}={value}" for name, value in SETTINGS.items()),
  "--config.train.log_every_steps=1",
)


@pytest.fixture(scope="module")
def steps(arguments, tmp_path_factory):
  """Flags: 20 steps on a folder of images, evaluated on another."""
  folder = tmp_path_factory.mktemp("images")
  return (
    *arguments,
    *STEPS,
    f"--config.train.dataset={write_folder(folder / 'nuts', 29)}",
    f"--config.evaluation.datasets=('{write_folder(folder / 'bolts', 15)}',)",
  )


@pytest.fixture(scope="module")
def one(steps, clip_folder, data_dir, tmp_path_factory):
  """The steps in this process, on 8 devices; and where they began."""
  config = make_config(clip_folder, data_dir)
  config.train.update(SETTINGS)
  config.train.dataset = steps[-2].partition("=")[2]
  config.evaluation.datasets = (steps[-1].split("'")[1],)
  config.train.log_every_steps = 1
  config.train.checkpoint_every_steps = 20
  config.train.evaluate_every_steps = 20
  workdir = tmp_path_factory.mktemp("one")
  training.train(config, workdir, profile_steps=(2, 3))
  assert list((workdir / "profile").rglob("*.xplane.pb"))
  model = weights.build_model(config, weights.clip_of(config))
  start = model.init_trainable(random_key(config.seed, INIT_KEY))
  return workdir, start


def assert_same_numbers(workdir, one):
  """Every loss term, the gradient's norm, and the way that parameters took."""
  whole, start = one
  rows, other_rows = read_metrics(whole), read_metrics(workdir)
  assert [row["step"] for row in rows] == [*range(1, 21), 20]
  # The last is what was evaluated, which not all do.
  assert len(other_rows) >= 20
  for row, other in zip(rows, other_rows, strict=False):
    assert row.keys() == other.keys()
    for name in row:
      # What was evaluated counts ranks, which change one at a time.
      tolerance = 1e-3 if "/" in name else 1e-5
      want = pytest.approx(row[name], rel=tolerance, abs=1e-5)
      assert other[name] == want, name
  assert "bolts/pixel_auroc" in rows[-1]
  assert_same_way(start, params(whole), params(workdir))


def test_two_processes_train_and_evaluate_as_one(one, steps, tmp_path):
  """2 processes of 4 devices."""
  two = tmp_path / "two"
  arguments = (
    *steps,
    "--config.train.checkpoint_every_steps=20",
    "--config.train.evaluate_every_steps=20",
  )
  cluster = start_cluster(2, 4, "train.py", *arguments, f"--workdir={two}")
  codes, (log, others) = end_cluster(cluster)
  assert codes == [0, 0], log + others
  assert "8 cpu device(s) of 2 process(es)" in log
  assert "cpu device(s)" not in others
  assert_same_numbers(two, one)
  whole, _ = one
  assert read_metrics(two)[-1].keys() == read_metrics(whole)[-1].keys()
  names = {path.name for path in whole.iterdir()} - {"profile"}
  assert {path.name for path in two.iterdir()} == names


def test_a_signal_to_one_process_stops_all(one, steps, tmp_path):
  """After the same step; then they go on. On features that both computed."""
  workdir = tmp_path / "run"
  arguments = (
    *steps,
    "--config.train.checkpoint_every_steps=3",
    "--config.feature_cache.dtype=float32",
    f"--config.features_dir={tmp_path}/features",
    f"--workdir={workdir}",
  )
  cluster = start_cluster(2, 1, "train.py", *arguments)
  while not (workdir / "checkpoints/3/manifest.json").exists():
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
  assert "computing features of nuts, part 1 of 2: 16/16" in logs[0]
  shards = (tmp_path / "features").glob("*/*.npy")
  assert sorted(path.name for path in shards) == ["000000.npy", "000001.npy"]

  codes, logs = end_cluster(start_cluster(2, 1, "train.py", *arguments))
  assert codes == [0, 0], logs
  assert f"from step {step}" in logs[0]
  assert "features of nuts are read from" in logs[0]
  assert_same_numbers(workdir, one)


def test_a_file_that_one_process_cannot_read_stops_all(
  trained, steps, tmp_path
):
  """Training is saved by all; evaluation goes on with the next data set."""
  good = write_folder(tmp_path / "good", 8)
  bad = write_folder(tmp_path / "bad", 8)
  (tmp_path / "bad/test/good/06.png").write_bytes(b"not an image")
  workdir = tmp_path / "run"
  cluster = start_cluster(
    *(2, 1, "train.py", *steps, f"--workdir={workdir}"),
    *(f"--config.train.dataset={bad}", "--config.train.batch_size=2"),
  )
  began = time.monotonic()
  codes, logs = end_cluster(cluster)
  assert time.monotonic() - began < 60
  assert codes == [1, 1], logs
  for log in logs:
    assert "test/good/06.png of data set 'bad': its image cannot" in log
    assert "Traceback" not in log
  last = find_steps(workdir)[-1]
  assert last < 4 and not find_damage(workdir)[last]
  assert not (workdir / "non_finite.json").exists()

  workdir = tmp_path / "evaluated"
  shutil.copytree(trained[0], workdir)
  cluster = start_cluster(
    *(2, 1, "eval.py", f"--workdir={workdir}", f"--datasets={bad},{good}"),
    "--config.evaluation.batch_size=2",
  )
  codes, logs = end_cluster(cluster)
  assert codes == [1, 1], logs
  assert all("06.png of data set 'bad'" in log for log in logs)
  assert "process 1: " in logs[0] or "process 0: " in logs[1]
  rows = (workdir / "scores.csv").read_text().splitlines()
  assert len(rows) == 9 and all(row.startswith("good,") for row in rows[1:])


def test_a_full_disk_stops_all(steps, tmp_path):
  """Only the first process notices."""
  workdir = tmp_path / "run"
  arguments = (*steps, "--config.train.checkpoint_every_steps=3")
  cluster = start_cluster(2, 1, "train.py", *arguments, f"--workdir={workdir}")
  while not (workdir / "checkpoints/3/manifest.json").exists():
    assert all(process.poll() is None for process in cluster)
    time.sleep(0.05)
  resource.prlimit(cluster[0].pid, resource.RLIMIT_FSIZE, (5_000, 5_000))
  codes, logs = end_cluster(cluster)
  assert codes == [1, 1], logs
  for log in logs:
    assert f"written in {workdir}/checkpoints: File too large. Earlier" in log
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
def test_bad_arguments_are_refused(arguments, expected):
  with pytest.raises(InputError, match=expected):
    distributed.start(*arguments)


def test_one_process_alone():
  """What it gives comes back as it is, and what it raises."""
  value = {"array": np.arange(3)}
  assert distributed.gather_objects(value)[0] is value
  assert distributed.in_first_process(divmod, 7, 2) == (3, 1)
  with pytest.raises(ZeroDivisionError):
    distributed.in_first_process(divmod, 7, 0)


@pytest.mark.parametrize(
  "error, is_lost",
  (
    (jax.errors.JaxRuntimeError("UNAVAILABLE: a peer"), True),
    (ValueError("UNKNOWN: Gloo AllGather failed: closed by peer"), True),
    (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), False),
    (ValueError("UNAVAILABLE: the bucket's server"), False),
    (KeyError("made"), False),
  ),
)
def test_lost_processes_are_told_from_other_errors(monkeypatch, error, is_lost):
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  wrapped = InputError("the checkpoint cannot be written")
  wrapped.__cause__ = error
  for found in (error, wrapped):
    assert bool(distributed.find_lost_peer(found)) == is_lost
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: False)
  assert not distributed.find_lost_peer(error)


ASK_EACH_OTHER = """
import sys
import numpy as np
from cops_jax.errors import DamagedRunError
from cops_jax.runs.metrics_log import read_metrics
from cops_jax.runtime import processes

address, index = sys.argv[1], int(sys.argv[2])
processes.start(address, 2, index)
parts = processes.gather_objects(
  {"process": index, "array": np.full((index + 1, 2), index, np.int64)}
)
assert [part["process"] for part in parts] == [0, 1]
for index, part in enumerate(parts):
  assert part["array"].tolist() == [[index, index]] * (index + 1)
assert processes.in_first_process(lambda: b"bytes") == b"bytes"

def fail(error):
  raise error

for error in (KeyError("secret"), DamagedRunError("all is lost", "runs/a")):
  try:
    processes.in_first_process(fail, error)
  except Exception as caught:
    print(repr(caught), getattr(caught, "workdir", ""))
"""


def test_processes_exchange_objects_and_errors():
  """Objects with arrays; and what the first one's failure is in the other."""
  address = f"127.0.0.1:{free_port()}"
  pair = [
    start_afresh("-c", ASK_EACH_OTHER, address, index) for index in range(2)
  ]
  outputs = [process.communicate(timeout=120) for process in pair]
  reasons = ("KeyError('secret') ", "OSError('the first process says why') ")
  for (out, err), reason in zip(outputs, reasons, strict=True):
    lines = [reason, "DamagedRunError('all is lost') runs/a"]
    assert out.splitlines()[-2:] == lines, out + err  # Gloo's come before.
