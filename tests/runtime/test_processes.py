"""Clusters of real processes on this host."""

import collections
import json
import os
import random
import shutil
import signal
import time

import jax
import pytest

from cops_jax import training
from cops_jax.errors import InputError
from cops_jax.runs.checkpoints import Checkpoints, find_damage, find_steps
from cops_jax.runs.metrics_log import read_metrics
from cops_jax.runtime import processes
from cops_jax.runtime.randomness import INIT_KEY, random_key
from cops_jax.weights.backbone import load_backbone
from cops_jax.weights.model import build_model
from helpers.cluster import end_cluster, free_port, start_cluster
from helpers.config import make_config, small_fields
from helpers.images import make_image, write_folder
from helpers.runs import flip, leaves, wait_for
from helpers.scripts import ROOT, Program, run
from helpers.steps import SMOOTH, assert_same_updates

# Three epochs of five steps; the last step of each epoch is not full.
SETTINGS = {
  **{"batch_size": 6, "num_epochs": 3, "log_every_steps": 1},
  **{"evaluate_every_steps": 15, **SMOOTH},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """A data set to train on and one to evaluate on."""
  folder = tmp_path_factory.mktemp("images")
  return write_folder(folder / "nuts", 29), write_folder(folder / "bolts", 15)


@pytest.fixture(scope="module")
def flags(arguments, folders, tmp_path_factory):
  """Flags of a training on features that both processes compute."""
  return (
    *arguments,
    *(f"--config.train.{name}={value}" for name, value in SETTINGS.items()),
    f"--config.train.dataset={folders[0]}",
    f"--config.evaluation.datasets=('{folders[1]}',)",
    "--config.feature_cache.dtype=float32",
    f"--config.features_dir={tmp_path_factory.mktemp('features')}",
    "--heartbeat_timeout_seconds=5",
  )


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory):
  """An uninterrupted run of two processes with two devices each."""
  workdir = tmp_path_factory.mktemp("two")
  cluster = start_cluster(2, 2, "train.py", *flags, f"--workdir={workdir}")
  codes, logs = end_cluster(cluster)
  assert codes == [0, 0], logs
  assert "4 cpu devices of 2 processes" in logs[0]
  assert "cpu devices" not in logs[1]
  return workdir


def test_two_processes_train_and_evaluate_as_one(
  whole, folders, clip_folder, data_dir, tmp_path
):
  """Compares with a training from images in one process on eight devices."""
  config = make_config(clip_folder, data_dir)
  config.train.update(SETTINGS)
  config.train.dataset = folders[0]
  config.evaluation.datasets = folders[1:]
  training.train(config, tmp_path, profile_steps=(2, 3))
  assert list((tmp_path / "profile").rglob("*.xplane.pb"))
  rows, other_rows = read_metrics(tmp_path), read_metrics(whole)
  assert [row["step"] for row in rows] == [*range(1, 16), 15]
  assert "bolts/pixel_auroc" in rows[-1]
  for row, other in zip(rows, other_rows, strict=True):
    assert row.keys() == other.keys()
    for name in row:
      # Metrics count ranks, so their smallest change is larger.
      tolerance = 1e-3 if "/" in name else 1e-5
      want = pytest.approx(row[name], rel=tolerance, abs=1e-5)
      assert other[name] == want, name
  model = build_model(config, load_backbone(config))
  start = model.init_trainable(random_key(config.seed, INIT_KEY))
  ends = []
  for workdir in (tmp_path, whole):
    with Checkpoints(workdir) as saved:
      ends.append(jax.device_get(saved.restore_params()[1]))
  assert_same_updates(start, *ends)
  names = {path.name for path in tmp_path.iterdir()} - {"profile"}
  assert {path.name for path in whole.iterdir()} == names


def test_a_cluster_ends_together_and_resumes(whole, flags, folders, tmp_path):
  """One process has an error, SIGTERM or SIGKILL; the result stays the same."""
  workdir = tmp_path / "run"

  def start():
    return start_cluster(
      *(2, 2, "train.py", *flags, f"--workdir={workdir}"),
      "--config.train.checkpoint_every_steps=2",
      f"--config.features_dir={tmp_path}/features",
    )

  # One process cannot decode a file with unchanged size and time.
  path = f"{folders[0].removeprefix('folder:')}/ground_truth/bad/07.png"
  with open(path, "rb") as file:
    content, stat = file.read(), os.stat(path)

  def write(content):
    with open(path, "wb") as file:
      file.write(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

  write(bytes(len(content)))
  cluster = start()
  codes, logs = end_cluster(cluster)
  write(content)
  assert codes == [1, 1], logs
  for log in logs:
    assert "test/bad/07.png of data set 'nuts': its mask cannot" in log
    assert "Traceback" not in log
  assert not (workdir / "non_finite.json").exists()

  def end_one(number):
    """Sends a signal to one process when a new checkpoint is complete."""
    before = find_steps(workdir)
    cluster = start()
    while find_steps(workdir) == before:
      assert all(process.poll() is None for process in cluster)
      time.sleep(0.02)
    cluster[1].send_signal(number)
    return end_cluster(cluster)

  codes, logs = end_one(signal.SIGTERM)
  assert codes == [75, 75], logs
  for log in logs:
    assert "which is saved: the same command resumes" in log
  codes, logs = end_one(signal.SIGKILL)
  # JAX's computation fails, or JAX aborts the process.
  assert codes[0] in (75, -signal.SIGABRT), logs
  assert codes[1] == -signal.SIGKILL
  if codes[0] == 75:
    sentence = logs[0].splitlines()[-1]
    assert sentence.startswith("the connection to another process is lost")
    assert "the same command resumes from the newest checkpoint" in sentence
    assert "Traceback" not in logs[0]
  step = find_steps(workdir)[-1]
  assert step < 15 and not find_damage(workdir)[step]

  codes, logs = end_cluster(start())
  assert codes == [0, 0], logs
  assert f"from step {step}" in logs[0]
  assert "reading features of nuts from" in logs[0]
  assert read_metrics(workdir) == read_metrics(whole)
  for item in ("params", "opt_state"):
    assert leaves(workdir, 15, item) == leaves(whole, 15, item)


def test_bad_arguments_are_refused(arguments, tmp_path):
  code, _, err = run(
    "train.py", *arguments, f"--workdir={tmp_path}", "--num_processes=2"
  )
  assert code == 1 and "Traceback" not in err
  assert "did not connect to one cluster. Check --coordinator_address" in err
  assert "coordinator_address should be defined" in err


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
def test_only_lost_processes_are_recognized(monkeypatch, error, is_lost):
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  wrapped = InputError("the checkpoint cannot be written")
  wrapped.__cause__ = error
  for found in (error, wrapped):
    assert bool(processes.find_lost_peer(found)) == is_lost
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: False)
  assert not processes.find_lost_peer(error)


PAIR = """
import json
import sys
import time

import numpy as np

from cops_jax import training
from cops_jax.config import recipe
from cops_jax.errors import InputError
from cops_jax.evaluation import many
from cops_jax.runs import record
from cops_jax.runtime import processes, signals

signals._SECONDS = 1
address, index, small = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
processes.start(address, 2, index)
parts = processes.gather_objects(
  {"process": index, "array": np.full((index + 1, 2), index, np.int64)}
)
assert [part["process"] for part in parts] == [0, 1]
for number, part in enumerate(parts):
  assert part["array"].tolist() == [[number, number]] * (number + 1)
assert processes.in_first_process(lambda: b"bytes") == b"bytes"

def fail(error):
  raise error

def try_to(function, *args):
  try:
    function(*args)
  except Exception as caught:
    print(repr(caught), flush=True)

for error in (KeyError("secret"), InputError("all is lost")):
  try_to(processes.in_first_process, fail, error)

def start(function, name, fields, others):
  config = recipe(name)
  config.update_from_flattened_dict(small[name] | fields)
  if index:
    config.update_from_flattened_dict(others)
  try_to(function, config, name)

nuts, ensemble = {"train.dataset": "folder:nuts"}, "prompt_ensemble_demo"
start(training.train, "demo", nuts, {
  "train.learning_rate": 0.1, "train.num_epochs": 3, "features_dir": "elsewhere"
})
start(training.train, "demo", {"train.dataset": "folder:fewer"}, {})
start(training.train, "demo", {"train.dataset": "folder:changed"}, {})
start(training.train, "demo", nuts, {"backbone.weights": "clip"})
start(training.train, "demo", nuts, {"backbone.weights": "heads"})
start(many.evaluate, ensemble, {}, {"evaluation.num_pictures": 0})
start(many.evaluate, ensemble, {"model.texts": "texts.txt"}, {})
start(many.evaluate, ensemble, {"evaluation.datasets": ["folder:fewer"]}, {})
versions = record.package_versions() | {"jax": f"0.{index}"}
record.package_versions = lambda: versions
start(training.train, "demo", nuts, {})
open("waiting", "w").close()
processes.gather_objects(time.sleep(600) if index else None)
"""


# The error of each start in `PAIR`.
DIFFERENCES = (
  "config.train.num_epochs is 1 in process 0 and 3 in process 1;"
  " config.train.learning_rate is 0.001 in process 0 and 0.1 in process 1",
  "number of images of 'fewer' is 14 in process 0 and 13 in process 1; SHA",
  "SHA-256 of 'changed' (see config.input.compare_bytes) is",
  "SHA-256 of the backbone is",
  "SHA-256 of the backbone's config.json is",
  "config.evaluation.num_pictures is 4 in process 0 and 0 in process 1",
  "SHA-256 of the prompts is",
  "version of jax is '0.0' in process 0 and '0.1' in process 1",
)


def test_processes_agree_and_refuse_to_differ(clip_folder, data_dir, tmp_path):
  """Objects and errors are exchanged; all need one config, CLIP and data set.

  At the end, the second process never answers, and SIGTERM ends the first.
  """
  script = tmp_path / "pair.py"
  script.write_text(PAIR)
  fields = {
    name: small_fields(clip_folder, data_dir, method)
    for name, method in (
      ("demo", "cops"),
      ("prompt_ensemble_demo", "prompt_ensemble"),
    )
  }
  folders = [tmp_path / "0", tmp_path / "1"]
  for name in ("nuts", "fewer", "changed"):
    write_folder(folders[0] / name, 14)
  texts = (ROOT / "cops_jax/methods/prompt_texts/demo.txt").read_text()
  (folders[0] / "texts.txt").write_text(texts)
  shutil.copytree(folders[0], folders[1])
  (folders[1] / "fewer/test/good/12.png").unlink()
  make_image(0).save(folders[1] / "changed/test/good/12.png")
  (folders[1] / "texts.txt").write_text(texts.replace("clean {}\n", ""))
  flip(shutil.copytree(clip_folder, folders[1] / "clip") / "model.safetensors")

  heads = shutil.copytree(clip_folder, folders[1] / "heads") / "config.json"
  heads.write_text(heads.read_text().replace("quick_gelu", "gelu"))
  address = f"127.0.0.1:{free_port()}"
  pair = [
    Program(script, address, str(index), json.dumps(fields), folder=folder)
    for index, folder in enumerate(folders)
  ]
  wait_for(folders[0] / "waiting", pair[0])
  time.sleep(0.5)  # By now the first process waits for the second.
  pair[0].send_signal(signal.SIGTERM)
  assert pair[0].wait(timeout=20) == 75
  pair[1].kill()
  outputs = [process.communicate(timeout=60) for process in pair]
  assert "stopped by a signal while it waited" in outputs[0][1]
  reasons = (
    "KeyError('secret')",
    "OSError('the first process failed; it reports the reason')",
  )
  for (out, err), reason in zip(outputs, reasons, strict=True):
    lines = [line for line in out.splitlines() if "Error(" in line]
    assert lines[:2] == [reason, "InputError('all is lost')"], out + err
    for line, difference in zip(lines[2:], DIFFERENCES, strict=True):
      start = "InputError('the processes of this job differ: "
      assert line.replace('"', "'", 1).startswith(start + difference)
    assert "folder:fewer failed: the processes of this job differ: numb" in err


@pytest.mark.soak
def test_an_evaluation_killed_or_stopped_at_random_resumes(arguments, tmp_path):
  """One of two connected processes ends; the same command does the rest.

  test_resume kills training at random.
  """
  rng = random.Random(time.time_ns())
  nuts, bolts = (
    write_folder(tmp_path / name, 29) for name in ("nuts", "bolts")
  )
  start, workdir = tmp_path / "start", tmp_path / "run"
  flags = (
    f"--config.features_dir={workdir}/features",
    f"--config.evaluation.datasets=('{nuts}','{bolts}')",
    "--config.feature_cache.dtype=float32",
  )
  training = (*arguments, *flags, f"--config.train.dataset={nuts}")
  code, _, err = run("train.py", *training, f"--workdir={start}")
  assert code == 0, err
  command = ("eval.py", *flags, f"--workdir={workdir}")

  def begin_again():
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(start, workdir)

  begin_again()
  began = time.monotonic()
  codes, logs = end_cluster(start_cluster(2, 1, *command))
  assert codes == [0, 0], logs
  duration = time.monotonic() - began
  whole = (workdir / "scores.csv").read_bytes()
  begin_again()
  num_kills, ends = 0, collections.Counter()
  while num_kills < 20:
    cluster = start_cluster(2, 1, *command)
    time.sleep(rng.uniform(0.4, 1) * duration)
    killed = rng.choice((0, 1))
    if any(process.poll() is not None for process in cluster):
      assert end_cluster(cluster)[0] == [0, 0]
      assert (workdir / "scores.csv").read_bytes() == whole
      begin_again()
      continue
    end = rng.choice((signal.SIGKILL, signal.SIGSTOP))
    cluster[killed].send_signal(end)
    began = time.monotonic()
    cluster[1 - killed].wait(timeout=120)
    seconds = time.monotonic() - began
    if end == signal.SIGSTOP:
      cluster[killed].kill()
    codes, logs = end_cluster(cluster)
    log = logs[1 - killed]
    assert codes[1 - killed] in (0, 75, -signal.SIGABRT), logs
    if codes[1 - killed] == 75:
      assert "to another process is lost" in log and "Traceback" not in log, log
    num_kills += 1
    if num_kills % 2:  # Every other time, the results so far are kept.
      begin_again()
    ends[codes[1 - killed]] += 1
    print(
      f"{end.name} to {killed}, the other ended after {seconds:.1f} s", ends
    )
  codes, logs = end_cluster(start_cluster(2, 1, *command))
  assert codes == [0, 0], logs
  assert (workdir / "scores.csv").read_bytes() == whole
