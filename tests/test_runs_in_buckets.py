"""Runs with their run directory, CLIP and outputs in a bucket."""

import contextlib
import random
import signal
import time

import pytest

from cops_jax import files
from cops_jax.commands import predict, weights
from cops_jax.paths import to_path
from cops_jax.runs.metrics_log import read_metrics
from helpers.images import make_image
from helpers.runs import leaves, wait_for
from helpers.scripts import Program, run


@pytest.fixture
def train(arguments, bucket, clip_folder):
  """The command of a training in the bucket, with CLIP from the bucket."""
  for path in clip_folder.iterdir():
    files.write_file(f"{bucket}/clip/{path.name}", path.read_bytes())
  return (
    *("train.py", *arguments, f"--workdir={bucket}/run"),
    f"--config.backbone.weights={bucket}/clip",
  )


def assert_same_training(workdir, whole):
  """Asserts that a run equals one on a local disk, bit by bit."""
  assert read_metrics(to_path(workdir)) == read_metrics(whole)
  place = files.fetch(workdir)
  for item in ("params", "opt_state"):
    assert leaves(place, 9, item) == leaves(whole, 9, item)


def test_a_run_survives_a_kill_and_an_outage(
  train, bucket, server, trained, tmp_path
):
  """The run is then evaluated, and its prompts are used."""
  workdir = f"{bucket}/run"
  process = Program(*train)
  wait_for(f"{workdir}/checkpoints/4/manifest.json", process)
  process.kill()
  process.wait()
  failures = []

  def fault(method, path, body):
    if "checkpoints%2F8%2F" in path and len(failures) < 2:
      failures.append(path)
      return 503
    return None

  server.fault = fault
  code, _, err = run(*train)
  assert code == 0 and len(failures) == 2, err
  assert f"resuming {workdir} from step" in err
  assert_same_training(workdir, trained[0])

  code, out, err = run("eval.py", f"--workdir={workdir}", "--save_maps")
  assert code == 0, err
  assert f"report: {workdir}/report.html" in out
  found = files.find_files(workdir)
  assert {"results.json", "scores.csv", "losses.png"} <= found.keys()
  assert sum(name.startswith("maps/") for name in found) == 6  # One a category.
  assert not any(name.endswith(".held") for name in found)

  photo = tmp_path / "photo.png"
  make_image(0).save(photo)
  places = ["--workdir", workdir, "--out"]
  prompts = f"{bucket}/prompts.safetensors"
  assert not weights.main(["save", *places, prompts])
  assert not weights.main(["inspect", prompts])
  assert not predict.main([str(photo), *places, f"{bucket}/found"])
  assert set(files.find_files(f"{bucket}/found")) == {
    *("predictions.jsonl", "predictions.csv", "index.html"),
    *("pictures/photo.jpg", ".cops_predict.json"),
  }


@pytest.mark.soak
@pytest.mark.parametrize("ends_while", ("folders", "arrays"))
def test_a_run_ends_and_resumes_if_the_server_stops(
  train, bucket, server, trained, ends_while
):
  """The server stops in the middle of a save; the run resumes after it."""
  gone = []
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
  code, _, err = run(*train)
  print(time.monotonic() - began)
  assert code == 1 and gone and time.monotonic() - began < 400
  (message,) = [line for line in err.splitlines() if line.startswith("error:")]
  assert "cannot be written" in message and "Traceback" not in err
  server.fault = lambda *_: None
  code, _, err = run(*train)
  assert code == 0 and "from step 4" in err
  assert_same_training(f"{bucket}/run", trained[0])


@pytest.mark.soak
def test_a_run_killed_at_random_resumes(train, bucket, trained):
  """The run is killed twelve times. If it finishes before, it starts again."""
  workdir, num_killed, num_finished = f"{bucket}/run", 0, 0
  while num_killed < 12:
    process = Program(*train)
    time.sleep(random.uniform(2, 12))
    with contextlib.suppress(ProcessLookupError):
      process.kill()
    process.communicate()
    num_killed += process.returncode == -signal.SIGKILL
    if process.returncode == 0:
      assert_same_training(workdir, trained[0])
      files.delete(workdir)
      num_finished += 1
  code, _, err = run(*train)
  assert code == 0, err
  assert_same_training(workdir, trained[0])
  print(num_killed, "killed;", num_finished, "finished before")
