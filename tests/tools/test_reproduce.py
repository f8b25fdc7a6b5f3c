"""The papers' table is reproduced from tiny data sets in original layouts."""

import csv
import re
import shutil

import pytest

from cops_jax.datasets import SPECIFICATIONS
from cops_jax.evaluation.results import Evaluated
from cops_jax.metrics import METRICS
from cops_jax.reporting.comparison import format_rows
from cops_jax.reporting.papers import paper_results
from helpers import original_layouts
from helpers.made_results import FIRST, make_result
from tools import reproduce, runs

NAMES = ("visa", "btad", "isic")


@pytest.fixture(scope="module")
def manual_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("manual")
  for name in NAMES:
    original_layouts.write_tree(name, folder)
  return folder


@pytest.fixture
def call(manual_dir, tmp_path, monkeypatch):
  """Calls the command with instant runs."""

  def train_and_evaluate(config, workdir, **_):
    provenance = {"config": config.to_dict()}
    names = config.evaluation.datasets
    results = {name: make_result(FIRST) for name in names}
    return Evaluated(results, {}, {}, provenance)

  monkeypatch.setattr(runs, "train_and_evaluate", train_and_evaluate)
  monkeypatch.setattr(reproduce.signals, "catch_signals", lambda: None)
  arguments = (
    *(f"--workdir={tmp_path / 'paper'}", f"--manual_dir={manual_dir}"),
    f"--config.data_dir={tmp_path / 'data'}",
    *("--config.backbone.weights=demo", "--config.train.num_epochs=1"),
  )
  return lambda *more: reproduce.main([*arguments, *more])


def test_the_command_lists_runs_and_writes_the_table(call, tmp_path, capsys):
  workdir = tmp_path / "paper"
  call("--datasets=btad,isic", "--seeds=0,1", "--dry_run")
  listed = capsys.readouterr().out
  assert listed.splitlines() == [
    "data sets: visa, btad, isic",
    "data sets to prepare: visa, btad, isic",
    "2 runs: visa (0), visa (1)",
  ]
  assert not workdir.exists() and not (tmp_path / "data").exists()
  call("--datasets=btad,isic", "--seeds=0,1")
  out = capsys.readouterr().out
  table = (workdir / "table.txt").read_text()
  assert out.startswith(listed) and out.endswith(table)
  assert "data sets without a difference, because they are not" in table
  assert (
    "differ from the papers' recipes: " in table
    and "train.num_epochs=1" in table
  )
  with (workdir / "table.csv").open() as file:
    rows = {
      (row["dataset"], row["metric"]): row for row in csv.DictReader(file)
    }
  for name in ("btad", "isic"):
    for metric, paper in paper_results({"method": "cops"})[name].items():
      row = rows[name, metric]
      assert float(row["reference"]) == paper and row["difference"] == ""
      assert float(row["mean"]) == FIRST[metric] and row["runs"] == "2"
  call("--datasets=btad,isic", "--dry_run")
  assert "data sets to prepare: none\n" in capsys.readouterr().out


def test_bad_input_is_reported(call, manual_dir, tmp_path, capsys):
  fewer = shutil.copytree(manual_dir, tmp_path / "manual")
  shutil.rmtree(fewer / "btad")
  shutil.rmtree(fewer / "visa")  # VisA can be downloaded.
  for arguments, expected in (
    (["--config=demo"], "--config is not supported"),
    (["--methods=cosp"], "no table of the method 'cosp'"),
    (["--datasets=vsia"], "'vsia' is not a data set of the table"),
    (
      [f"--datasets={','.join(NAMES)}", f"--manual_dir={fewer}"],
      f"(?s)^error: 2 of 4 data sets.*btad +{SPECIFICATIONS['btad'].homepage}",
    ),
  ):
    with pytest.raises(SystemExit) as ended:
      call(*arguments)
    message = capsys.readouterr().err if ended.value.code == 2 else ended.value
    assert re.search(expected, str(message))
  assert not (tmp_path / "paper").exists()


def test_each_recipe_is_evaluated_on_data_it_was_not_trained_on():
  names = list(SPECIFICATIONS)
  configs = reproduce.make_configs(
    list(reproduce.RECIPES), names, {"train.b1": 0.7}
  )
  for name, auxiliary in (("visa", "visa"), ("anomalyclip_mvtec", "mvtec_ad")):
    config = configs[name]
    assert config.train.dataset == auxiliary
    rest = [other for other in names if other != auxiliary]
    assert list(config.evaluation.datasets) == rest
  assert configs["uniadet_mvtec"].evaluation.datasets == ("visa",)
  assert configs["mvtec"].evaluation.datasets == ("visa",)
  assert configs["anomalyclip_visa"].evaluation.datasets == ("mvtec_ad",)
  assert list(configs["prompt_ensemble"].evaluation.datasets) == names
  assert all(
    config.feature_cache.dtype == config.backbone.dtype
    for config in configs.values()
  )
  planned = runs.list_runs(configs, [3, 4])
  assert ("visa", 4) in planned and ("prompt_ensemble", 4) not in planned
  only = reproduce.make_configs(["cops"], ["visa"], {})
  assert list(only) == ["mvtec"]
  assert reproduce.needed_datasets(only) == ["mvtec_ad", "visa"]


def content(**values):
  return {
    "datasets": {
      name: {
        "mean": dict.fromkeys(METRICS) | {"image_auroc": value},
        "is_published": True,
        "data_sha256": "a",
      }
      for name, value in values.items()
    },
  }


def test_both_recipes_of_a_method_share_a_row():
  """The paper and other methods have rows of their own."""
  configs = reproduce.make_configs(
    ["cops", "prompt_ensemble"], ["mvtec_ad", "visa"], {}
  )
  found = {
    "visa": {0: content(mvtec_ad=0.94), 1: content(mvtec_ad=0.96)},
    "mvtec": {0: content(visa=0.8), 1: content(visa=0.8)},
    "prompt_ensemble": {0: content(mvtec_ad=0.7, visa=0.6)},
  }
  rows = reproduce.make_rows(configs, found)
  lines = [
    line.split() for line in format_rows(rows, "method", "paper").splitlines()
  ]
  assert lines[1][:7] == ["mvtec_ad", "cops", "2", "95.0", "±", "1.4", "(+0.0)"]
  assert lines[2][:4] == ["mvtec_ad", "cops,", "paper", "95.0"]
  assert lines[3][:4] == ["mvtec_ad", "prompt_ensemble", "1", "70.0"]
  # 87.5 against 90.2.
  assert ["overall", "mean", "cops", "2", "87.5"] in [row[:5] for row in lines]
