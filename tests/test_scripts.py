"""train.py and eval.py as a user runs them, with good and bad input."""

import csv
import json
import re
import sys

import pytest
from PIL import Image

from cops_jax.commands import flags, make_parser
from cops_jax.runs.checkpoints import Checkpoints
from helpers.scripts import ROOT, call, run


def test_training_shows_progress_and_writes_its_files(trained):
  workdir, log = trained
  assert "576 images of demo_auxiliary: 9 steps with batch size 64" in log
  assert "| prompt_learner/context " in log
  assert "epoch 1/1, loss" in log and "9/9 steps" in log and "left" in log
  assert "8 cpu devices of 1 process, mesh {'data': 8}" in log
  assert "MB of backbone on each device" in log
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
  assert " ms per step, " in log and "% waiting for input)" in log
  account = re.search(r"the run took [\d.]+ s: (.*)", log)[1]
  for what in ("compiling", "steps", "input", "saving", "the rest"):
    assert re.search(rf"{what} [\d.]+ s", account), what
  assert rows[-1]["loss"] < rows[0]["loss"]
  assert log.splitlines()[-1].startswith("training is finished; evaluate it")
  record = json.loads((workdir / "run.json").read_text())
  assert record["config"]["train"]["batch_size"] == 64
  with Checkpoints(workdir) as saved:
    assert saved.latest_step() == 9


def test_evaluation_needs_no_config_and_writes_its_files(trained):
  """The config is that of the run, with one field set by a flag."""
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


@pytest.mark.parametrize(
  "name, extra, code, expected",
  (
    ("train", "--config.train.epochs=3", 2, " or --config.train.num_epochs"),
    ("train", "--config.train.batch_size=x", 2, "batch_size: invalid int va"),
    ("train", "--allow_other_backbone=2", 2, "neither true nor false"),
    ("train", "--config.evaluation.datasets=('a", 2, "is not a list such as"),
    ("train", "--profile_steps=2,1", 2, "is not the first and the last step"),
    ("train", "--config.model.image_size_pixels=50", 1, "patch size 16"),
    ("train", "--config.backbone.weights=/nowhere", 1, "'/nowhere' is neither"),
    ("train", "--config.train.dataset=folder:x", 1, "x is not a folder"),
    ("train", "surplus", 2, "unrecognized arguments: surplus"),
    ("train", "--config.train.use_tensorboard", 1, 'pip install "cops-jax[ten'),
    ("evaluate", "--config.seed=0", 1, "holds no training run"),
    ("evaluate", "--datasets=visa,mvtec", 2, "'mvtec' (did you mean mvtec_ad"),
  ),
)
def test_bad_input_is_reported_in_one_sentence_and_writes_nothing(
  arguments, tmp_path, monkeypatch, name, extra, code, expected
):
  workdir = tmp_path / "run"
  monkeypatch.setitem(sys.modules, "clu.metric_writers", None)
  found, out, err = call(name, *arguments, f"--workdir={workdir}", extra)
  assert (found, out) == (code, "") and expected in err.splitlines()[-1]
  assert not workdir.exists()


def test_flags_set_fields():
  """Booleans are --flag, --flag=true or --flag=false, as in absl."""
  parser = make_parser("train", "")
  flags.add_config(parser)
  flags.add_cluster(parser)
  flags.add(parser, "--allow_other_backbone", **flags.BOOL)
  options = parser.parse_args(
    [
      *("--config=ablations:no_vae", "--config.train.b1=0.25"),
      *("--config.evaluation.datasets=folder:/a", "--config.seed", "1"),
      *("--config.model.feature_layers=(2,3)", "--config.backbone.dtype=auto"),
      *("--config.train.use_tensorboard", "--config.compilation_cache=False"),
      *("--allow_other_backbone=true", "--distributed=false"),
    ],
  )
  assert options.allow_other_backbone is True and options.distributed is False
  config = flags.read_config(options)
  assert config.model.num_category_words == 0
  assert config.train.b1 == 0.25 and config.seed == 1
  assert config.evaluation.datasets == ("folder:/a",)
  assert config.model.feature_layers == (2, 3)
  assert config.backbone.dtype == "auto"
  assert config.train.use_tensorboard is True
  assert config.compilation_cache is False


def test_a_config_can_come_from_a_run(trained, tmp_path):
  """The config comes from the run in --workdir or from the one in --config."""
  workdir, _ = trained
  released = ROOT / "tests" / "data" / "weights" / "epoch_1.pth"
  _, _, err = call(
    "evaluate", f"--workdir={workdir}", f"--checkpoint={released}"
  )
  assert "does not contain the config that it was trained with" in err
  code, out, err = call(
    *("train", f"--config={workdir}", f"--workdir={workdir}"), "--process_id=0"
  )
  assert (code, out) == (1, "") and "Check --coordinator_address" in err
  code, _, err = call(
    *("train", f"--config={workdir}", f"--workdir={tmp_path}"),
    "--config.train.num_epochs=0",
  )
  assert code == 0, err
  with Checkpoints(tmp_path) as saved:
    assert saved.latest_step() == 0  # The prompts are untrained.


def test_another_config_is_refused(trained, arguments):
  workdir, _ = trained
  before = sorted(path.name for path in workdir.iterdir())
  changed = "--config.model.temperature=0.1"
  for name in ("train", "evaluate"):
    code, _, err = call(name, *arguments, f"--workdir={workdir}", changed)
    assert code == 1
    assert "model.temperature is 0.07 in the run and 0.1 now" in err
  assert sorted(path.name for path in workdir.iterdir()) == before
