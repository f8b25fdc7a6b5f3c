"""Tables over several runs; training and evaluation are tested elsewhere."""

import csv
import json

import pytest

from configs import ablations
from cops_jax.evaluation.results import Evaluated
from helpers.made_results import FIRST, SECOND, make_result
from tools import ablate, compare_methods, runs

BROKEN = "no_vae/seed-0"


@pytest.fixture
def made(monkeypatch):
  """Makes runs instant and one fail; returns the folders of requested runs."""
  requested = []

  def train_and_evaluate(config, workdir, **_):
    requested.append(f"{workdir.parent.name}/{workdir.name}")
    if requested[-1] == BROKEN:
      raise OSError("the disk is full")
    result = make_result(SECOND if config.seed else FIRST)
    provenance = {"config": config.to_dict()}
    return Evaluated({"made": result}, {}, {}, provenance)

  monkeypatch.setattr(runs, "train_and_evaluate", train_and_evaluate)
  return requested


def test_ablations_are_compared_despite_a_failure(
  made, tmp_path, monkeypatch, capsys
):
  names = ["full", "no_vae", "no_deep_prompts"]
  monkeypatch.setattr(ablate.signals, "catch_signals", lambda: None)
  reason = "^failed: no_vae with seed 0: the disk is full$"
  with pytest.raises(SystemExit, match=reason):
    ablate.main(
      [f"--workdir={tmp_path}", "--seeds=0,1", f"--only={','.join(names)}"]
    )
  assert made == [f"{name}/seed-{seed}" for seed in (0, 1) for name in names]
  table = capsys.readouterr().out
  assert (tmp_path / "table.txt").read_text() == table
  lines = [line.split() for line in table.splitlines()]
  assert lines[0][:4] == ["data", "set", "ablation", "runs"]
  assert lines[1][:6] == ["made", "full", "2", "80.0", "±", "14.1"]
  assert lines[2][:7] == [
    *("made", "no_deep_prompts", "2", "80.0", "±", "14.1", "(+0.0)"),
  ]
  assert lines[3][:5] == ["made", "no_vae", "1", "70.0", "(+0.0)"]
  with (tmp_path / "table.csv").open() as file:
    assert len(list(csv.DictReader(file))) == 8 + 8 + 3
  content = json.loads((tmp_path / "table.json").read_text())
  assert content["overrides"] == {
    name: ablations.ABLATIONS["cops"][name] for name in names
  }
  assert content["runs"]["full"]["1"]["datasets"]["made"]["num_images"] == 1
  assert list(content["failures"]) == ["no_vae with seed 0"]


def test_methods_are_compared(made, tmp_path, capsys):
  """A method that is not trained runs with the first seed only."""
  compare_methods.main([f"--workdir={tmp_path}", "--seeds=0,1"])
  rows = [line.split() for line in capsys.readouterr().out.splitlines()]
  assert rows[0][:4] == ["data", "set", "recipe", "runs"]
  assert [row[:3] for row in rows[1:]] == [
    ["made", "demo", "2"],
    ["made", "anomalyclip_demo", "2"],
    ["made", "uniadet_demo", "2"],
    ["made", "uniadet_demo:augmented", "2"],
    ["made", "prompt_ensemble_demo", "1"],
  ]
  assert made.count("prompt_ensemble_demo/seed-0") == 1


@pytest.mark.parametrize(
  "command, argument, expected",
  (
    (compare_methods, "--recipes=vsia", "'vsia' is not a recipe (did you"),
    (ablate, "--only=full,no_vea", "'no_vea' is not an ablation (did you mean"),
    (ablate, "--olny=full", "--olny=full (did you mean --only?)"),
  ),
)
def test_bad_input_is_reported(
  tmp_path, monkeypatch, capsys, command, argument, expected
):
  monkeypatch.setattr(ablate.signals, "catch_signals", lambda: None)
  with pytest.raises(SystemExit, match="^2$"):
    command.main([f"--workdir={tmp_path}", argument])
  assert expected in capsys.readouterr().err
  assert not any(tmp_path.iterdir())
