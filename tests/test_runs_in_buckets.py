"""Training and what follows, with nothing on this host's disk."""

import contextlib
import os
import random
import signal
import time

import pytest
from PIL import Image

from cops_jax import copies, files
from cops_jax.paths import to_path
from cops_jax.runs.metrics_log import read_metrics
from helpers.cluster import end_cluster, free_port
from helpers.runs import flip, leaves, wait_for
from helpers.scripts import Program, run


@pytest.fixture
def in_bucket(arguments, bucket, clip_folder):
  """The session's arguments, with CLIP in the bucket."""
  copies.send(clip_folder, f"{bucket}/clip")
  return [*arguments, f"--config.clip.weights={bucket}/clip"]


def assert_same_training(workdir, whole):
  """As one on a local disk, bit by bit; gives the local copy."""
  assert read_metrics(to_path(workdir)) == read_metrics(whole)
  place = copies.fetch(workdir)
  for item in ("params", "opt_state"):
    assert leaves(place, 9, item) == leaves(whole, 9, item)
  return place


def test_a_whole_run(in_bucket, bucket, trained, tmp_path):
  """Killed after a checkpoint; evaluated, compared, used."""
  workdir = f"{bucket}/runs/a"
  train = ("train.py", *in_bucket, f"--workdir={workdir}")
  process = Program(*train)
  wait_for(f"{workdir}/checkpoints/4/manifest.json", process)
  process.kill()
  process.wait()
  code, _, err = run(*train)
  assert code == 0, err
  assert f"resuming {workdir} from step" in err
  assert f"curves of the losses: {workdir}/losses.png" in err
  place = assert_same_training(workdir, trained[0])

  for run_dir in (workdir, place):  # A copy of a run is a run.
    code, out, err = run("eval.py", f"--workdir={run_dir}", "--save_maps")
    assert code == 0, err
    assert f"report: {run_dir}/report.html" in out
  scores = files.read_file(f"{workdir}/scores.csv")
  assert scores == (place / "scores.csv").read_bytes() and len(scores) > 1000
  maps = files.find_files(f"{workdir}/maps")
  assert maps.keys() == files.find_files(place / "maps").keys()
  assert len(maps) == 7  # Of six categories, and what they depend on.
  command = ("-m", "cops_jax", "compare", workdir, place)
  code, out, err = run(*command)
  assert code == 0 and " 0.00\n" in out, err

  Image.new("RGB", (60, 50)).save(tmp_path / "photo.png")
  out_dir = f"{bucket}/found"
  code, out, err = run(
    *("-m", "cops_jax", "predict", tmp_path / "photo.png"),
    *("--workdir", workdir, "--out", out_dir),
  )
  assert code == 0, err
  assert files.read_file(f"{out_dir}/predictions.jsonl").decode() == out
  assert set(files.find_files(out_dir)) == {"photo.png", "predictions.jsonl"}

  prompts = f"{bucket}/prompts.safetensors"
  command = ("-m", "cops_jax", "weights", "export")
  assert run(*command, "--workdir", workdir, "--out", prompts)[0] == 0
  code, _, err = run(
    *(
      "train.py",
      *in_bucket,
      f"--workdir={bucket}/b",
      f"--init_from={prompts}",
    ),
    "--config.train.num_epochs=0",
  )
  assert code == 0 and f"beginning from {prompts}" in err
  assert not [path for path in os.listdir() if path.startswith("gs:")]


def test_damage_in_a_bucket(arguments, bucket, trained):
  workdir = f"{bucket}/run"
  copies.send(trained[0], workdir)
  flip(f"{workdir}/checkpoints/9/params/manifest.ocdbt")
  code, out, _ = run("train.py", f"--workdir={workdir}", "--verify")
  assert code == 1
  assert "step 8: good\nstep 9: params/manifest.ocdbt has the SHA-256" in out
  # What a process that was killed has left.
  files.write_file(f"{workdir}/checkpoints/10/params/_METADATA", "{}")
  code, _, err = run("train.py", *arguments, f"--workdir={workdir}")
  assert code == 0, err
  assert "checkpoints/9 is damaged and not used" in err and "from step 8" in err
  found = files.find_files(f"{workdir}/checkpoints")
  assert {name.partition("/")[0] for name in found} == {
    "4",
    "8",
    "9",
    "9.damaged",
  }
  assert_same_training(workdir, trained[0])


def test_two_processes_of_two_hosts(
  in_bucket, bucket, trained, tmp_path, monkeypatch
):
  """Each has its own features; one is killed, and both are started again."""
  workdir = f"{bucket}/run"

  def start():
    address = f"--coordinator_address=127.0.0.1:{free_port()}"
    processes = []
    for index in range(2):
      monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"host-{index}"))
      processes.append(
        Program(
          *("train.py", *in_bucket, f"--workdir={workdir}"),
          "--config.feature_cache.dtype=float32",
          f"--config.features_dir={tmp_path}/features-{index}",
          *(address, "--num_processes=2", f"--process_id={index}"),
          num_devices=4,
        )
      )
    return processes

  processes = start()
  wait_for(f"{workdir}/checkpoints/4/manifest.json", processes[0])
  processes[1].kill()
  codes, logs = end_cluster(processes)
  assert codes[0] in (75, -signal.SIGABRT), logs
  assert codes[1] == -signal.SIGKILL, logs
  codes, logs = end_cluster(start())
  assert codes == [0, 0], logs
  assert "resuming" in logs[0]
  rows, want = read_metrics(to_path(workdir)), read_metrics(trained[0])
  for row, one in zip(rows, want, strict=True):
    assert row["loss"] == pytest.approx(one["loss"], rel=1e-4)


def test_an_outage_is_waited_for(in_bucket, bucket, server, trained):
  """Of some seconds, while a checkpoint is written."""
  workdir, began = f"{bucket}/run", []

  def fault(method, path, body):
    if "checkpoints%2F4%2F" in path or b"checkpoints/4/" in body:
      began.append(time.monotonic())
    return 503 if began and began[-1] - began[0] < 3 else None

  server.fault = fault
  code, _, err = run("train.py", *in_bucket, f"--workdir={workdir}")
  assert code == 0, err
  assert began[-1] - began[0] > 3
  server.fault = lambda *_: None
  assert_same_training(workdir, trained[0])


@pytest.mark.soak
@pytest.mark.parametrize("ends_while", ("folders", "arrays"))
def test_a_server_that_goes_ends_the_run(
  in_bucket, bucket, server, trained, ends_while
):
  """In the middle of a save; it comes back, and the run goes on."""
  workdir, gone = f"{bucket}/run", []
  marks = {
    "folders": "checkpoints/8/",
    "arrays": "checkpoints%2F8%2Fparams%2Foc",
  }

  def fault(method, path, body):
    if marks[ends_while] in path + body.decode("latin1"):
      gone.append(path)
    return 503 if gone else None

  server.fault = fault
  began = time.monotonic()
  code, _, err = run("train.py", *in_bucket, f"--workdir={workdir}")
  print(time.monotonic() - began)
  assert code == 1 and gone and time.monotonic() - began < 240
  (message,) = [line for line in err.splitlines() if line.startswith("error:")]
  assert "cannot be written" in message and "Traceback" not in err
  server.fault = lambda *_: None
  code, _, err = run("train.py", *in_bucket, f"--workdir={workdir}")
  assert code == 0 and "from step 4" in err
  assert_same_training(workdir, trained[0])


@pytest.mark.parametrize(
  "workdir, status, methods, sentence",
  (
    ("gs://no-such-bucket/run", None, (), "the bucket does not exist"),
    ("ftp://host/run", None, (), "expected gs://BUCKET/PATH or a local path"),
    ("gs://made-bucket/run", 403, ("POST", "PUT"), "may not do that in this"),
    ("gs://made-bucket/run", 401, ("GET", "POST"), "gcloud auth application-"),
  ),
)
def test_what_cannot_be_used_is_one_sentence(
  arguments, server, workdir, status, methods, sentence
):
  with server.failing(status, methods):
    code, _, err = run("train.py", *arguments, f"--workdir={workdir}")
  assert code == 1 and "Traceback" not in err
  (message,) = [line for line in err.splitlines() if line.startswith("error:")]
  assert sentence in message and workdir in message


@pytest.mark.soak
def test_a_run_in_a_bucket_killed_at_random(in_bucket, bucket, trained):
  """At any time, twelve times; between, until it is finished."""
  workdir, num_killed, num_finished = f"{bucket}/run", 0, 0
  train = ("train.py", *in_bucket, f"--workdir={workdir}")
  while num_killed < 12:
    process = Program(*train)
    time.sleep(random.uniform(2, 12))
    with contextlib.suppress(ProcessLookupError):
      process.kill()
    process.communicate()
    print(process.returncode, flush=True)
    num_killed += process.returncode == -signal.SIGKILL
    if process.returncode == 0:
      assert_same_training(workdir, trained[0])
      files.delete(workdir)
      num_finished += 1
  code, _, err = run(*train)
  assert code == 0, err
  assert_same_training(workdir, trained[0])
  print(num_killed, "killed;", num_finished, "finished before")
