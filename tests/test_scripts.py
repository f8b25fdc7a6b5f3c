"""train.py and eval.py as a user runs them, and what they do with bad input."""

import csv
import json
import re

import pytest
from PIL import Image

from cops_jax.runs.checkpoints import Checkpoints
from helpers.scripts import ROOT, run


def test_training_shows_progress_and_writes_its_files(trained):
  workdir, log = trained
  assert "576 images of demo_auxiliary: 9 steps of 64 images" in log
  assert "| prompt_learner/context " in log
  assert "epoch 1/1, loss" in log and "9/9 steps" in log and "left" in log
  assert "8 cpu device(s) of 1 process(es), mesh {'data': 8}" in log
  assert "MB of CLIP on each device" in log
  with Image.open(workdir / "losses.png") as curves:
    assert curves.width > 800
  rows = [
    json.loads(line)
    for line in (workdir / "metrics.jsonl").read_text().splitlines()
  ]
  assert [row["step"] for row in rows] == [2, 4, 6, 8, 9]
  assert set(rows[0]) == {
    *("step", "loss", "image", "patch", "gather", "scatter", "kl"),
    *("reconstruction", "gradient_norm"),
    *("time/images_per_second", "time/step_seconds", "time/input_share"),
  }
  assert all(0 < row["time/step_seconds"] < 100 for row in rows)
  assert all(0 <= row["time/input_share"] <= 1 for row in rows)
  assert " ms a step, " in log and "% waiting for input)" in log
  account = re.search(r"the run took [\d.]+ s: (.*)", log)[1]
  for what in ("compiling", "steps", "input", "saving", "the rest"):
    assert re.search(rf"{what} [\d.]+ s", account), what
  assert rows[-1]["loss"] < rows[0]["loss"]
  assert log.splitlines()[-1].startswith("training is finished; to evaluate")
  record = json.loads((workdir / "run.json").read_text())
  assert record["config"]["train"]["batch_size"] == 64
  with Checkpoints(workdir) as saved:
    assert saved.latest_step() == 9


def test_evaluation_needs_no_config_and_writes_its_files(trained):
  """The run's own, with a field set by hand."""
  workdir, _ = trained
  code, out, err = run(
    "eval.py", f"--workdir={workdir}", "--config.evaluation.num_pictures=1"
  )
  assert code == 0, err
  assert err.startswith(f"evaluating step 9 of {workdir}")
  assert "demo_unseen  mean" in out
  assert f"report: {workdir}/report.html" in out
  assert "612/612 images" in err
  assert err.endswith("the evaluation is finished: demo_unseen\n")
  results = json.loads((workdir / "results.json").read_text())["datasets"]
  assert set(results["demo_unseen"]["categories"]) == {
    *("wood", "brick", "knit", "hex_nut", "gear", "biscuit")
  }
  assert set(results["demo_unseen"]["mean"]) == {
    *("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap"),
    *("pixel_f1_max", "pixel_aupro", "pixel_aupro_200"),
  }
  page = (workdir / "report.html").read_text()
  assert page.count("data:image/jpeg") == 3 * 4
  with (workdir / "scores.csv").open() as file:
    assert len(list(csv.DictReader(file))) == 612


def test_no_epochs_is_a_checkpoint_of_untrained_prompts(arguments, tmp_path):
  code, _, err = run(
    "train.py",
    *arguments,
    f"--workdir={tmp_path}",
    "--config.train.num_epochs=0",
  )
  assert code == 0, err
  with Checkpoints(tmp_path) as saved:
    assert saved.latest_step() == 0


@pytest.mark.parametrize(
  "script, extra, expected",
  (
    ("train.py", "--config.train.epochs=3", 'Did you mean "num_epochs"'),
    ("train.py", "--config.train.batch_size=x", "train.batch_size=x: invalid"),
    ("train.py", "--config=configs/none.py", "configs/none.py"),
    ("train.py", "--config.model.image_size_pixels=50", "patch size 16"),
    ("train.py", "--config.clip.weights=/nowhere", "'/nowhere' are neither"),
    ("train.py", "--config.train.dataset=mvtec", "unknown data set 'mvtec'"),
    ("train.py", "surplus", "unexpected argument 'surplus'"),
    ("eval.py", "--config.seed=0", "holds no training run"),
    ("eval.py", "--datasets=visa,mvtec", "unknown data set 'mvtec'; known are"),
  ),
)
def test_bad_input_is_one_sentence_and_writes_nothing(
  arguments, tmp_path, script, extra, expected
):
  workdir = tmp_path / "run"
  code, out, err = run(script, *arguments, f"--workdir={workdir}", extra)
  assert code != 0
  assert expected in err
  assert "Traceback" not in err and out == ""
  assert not workdir.exists()


def test_evaluation_without_a_config_reports_what_it_needs(trained):
  workdir, _ = trained
  released = ROOT / "tests" / "data" / "weights" / "epoch_1.pth"
  for extra, expected in (
    (f"--checkpoint={released}", "does not say with which config it was"),
    ("--config.seeds=1", 'Did you mean "seed"'),
  ):
    code, out, err = run("eval.py", f"--workdir={workdir}", extra)
    assert code == 1 and out == ""
    assert expected in err and "Traceback" not in err


def test_another_config_is_refused(trained, arguments):
  workdir, _ = trained
  before = sorted(path.name for path in workdir.iterdir())
  changed = "--config.model.temperature=0.1"
  for script in ("train.py", "eval.py"):
    code, _, err = run(script, *arguments, f"--workdir={workdir}", changed)
    assert code == 1
    assert "model.temperature is 0.07 there and 0.1 here" in err
    assert "Traceback" not in err
  assert sorted(path.name for path in workdir.iterdir()) == before
