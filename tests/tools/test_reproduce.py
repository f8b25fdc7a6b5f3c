"""The papers' table from tiny trees, killed; and what it takes."""

import csv
import json
import shutil
import signal
import types

import pytest

from cops_jax.datasets import SPECIFICATIONS
from cops_jax.errors import InputError
from cops_jax.metrics import METRICS
from cops_jax.reporting.papers import paper_results
from cops_jax.weights import clip_of
from helpers import original_layouts
from helpers.runs import wait_for
from helpers.scripts import Program, run
from tools import runs
from tools.reproduce import needs, plan, report

NAMES = ("visa", "btad", "isic")


@pytest.fixture(scope="module")
def manual_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("manual")
  for name in (*NAMES, "mvtec_ad"):
    original_layouts.write_tree(name, folder)
  return folder


@pytest.fixture
def arguments(manual_dir, clip_folder, tmp_path):
  return [
    *("-m", "tools.reproduce", f"--manual_dir={manual_dir}"),
    f"--workdir={tmp_path / 'paper'}",
    f"--config.data_dir={tmp_path / 'data'}",
    f"--config.clip.weights={clip_folder}",
    "--config.model.image_size_pixels=48",
    "--config.model.feature_layers=(3,)",
    "--config.model.num_value_layers=2",
    "--config.model.num_heads=4",
    "--config.model.deep_prompt_depth=2",
    "--config.train.num_epochs=1",
    # The same in both recipes, whose programs are then compiled once.
    "--config.model.smoothing_window_patches=1",
    "--config.train.reconstruction=none",
    "--config.evaluation.alpha=0.3",
    "--config.evaluation.beta=0.5",
  ]


def test_killed_and_resumed(arguments, tmp_path):
  """What it takes is said first; the table has each of the papers' numbers."""
  workdir = tmp_path / "paper"
  whole = [*arguments, f"--datasets={','.join(NAMES)}"]
  process = Program(*whole, num_devices=1)
  kept = workdir / "visa" / "seed-0" / "evaluation" / "btad.json"
  wait_for(kept, process)
  process.kill()
  out, _ = process.communicate()
  assert process.returncode == -signal.SIGKILL
  # MVTec AD is needed to train on.
  assert "4 sets, " in out and " images: 4 to be prepared" in out
  assert "2: visa (0), mvtec (0)" in out
  for word in ("disk", "memory", "time    at least"):
    assert word in out
  time = kept.stat().st_mtime_ns

  code, out, err = run(*whole, num_devices=1)
  assert code == 0, err
  assert kept.stat().st_mtime_ns == time and "run 2 of 2: mvtec" in err
  assert "memory" not in out  # It fits, as the runs have begun.
  table = (workdir / "table.txt").read_text()
  assert out.endswith(f"{table}report: {workdir / 'report.html'}\n")
  assert "no difference where the images are not the published ones" in table
  with (workdir / "table.csv").open() as file:
    rows = {
      (row["dataset"], row["metric"]): row for row in csv.DictReader(file)
    }
  for name in NAMES:
    for metric, paper in paper_results("cops")[name].items():
      row = rows[name, metric]
      assert float(row["reference"]) == paper and row["difference"] == ""
      assert 0 <= float(row["mean"]) <= 1 and row["runs"] == "1"
  page = (workdir / "report.html").read_text()
  assert page.count('href="visa/seed-') == page.count('href="mvtec/seed-') == 1
  assert "not the papers' recipes" in page and "train.num_epochs=1" in page


def test_a_dry_run_writes_nothing(arguments, tmp_path):
  code, out, err = run(
    *(*arguments, "--dry_run", "--datasets=btad", "--seeds=0,1"),
    num_devices=1,
  )
  assert code == 0, err
  assert "2: visa (0), visa (1)" in out and "time    at least" in out
  assert not (tmp_path / "paper").exists() and not (tmp_path / "data").exists()


def test_what_is_missing_is_said(manual_dir, tmp_path):
  fewer = tmp_path / "manual"
  shutil.copytree(manual_dir, fewer)
  shutil.rmtree(fewer / "btad")
  shutil.rmtree(fewer / "visa")  # Can be downloaded.
  with pytest.raises(InputError) as raised:
    needs.find_data(NAMES, str(tmp_path / "data"), str(fewer))
  text = str(raised.value)
  assert text.startswith("1 of 3 data sets are missing")
  line = next(line for line in text.splitlines() if line.startswith("btad"))
  assert SPECIFICATIONS["btad"].homepage in line


def test_bad_input_is_reported(tmp_path):
  with pytest.raises(InputError, match="no table of the method 'cosp'"):
    plan.make_configs(["cosp"], NAMES, {})
  with pytest.raises(InputError, match="'vsia' is not a data set of the table"):
    needs.find_data(["vsia"], None, None)
  code, _, err = run(
    *("-m", "tools.reproduce", "--config=demo", f"--workdir={tmp_path}")
  )
  assert code == 1 and "--config is not read here" in err


def test_the_recipes_are_the_papers():
  names = list(SPECIFICATIONS)
  configs = plan.make_configs(
    ["cops", "anomalyclip", "prompt_ensemble"], names, {"train.b1": 0.7}
  )
  for name, auxiliary in (("visa", "visa"), ("anomalyclip_mvtec", "mvtec_ad")):
    config = configs[name]
    assert config.train.dataset == auxiliary
    rest = [other for other in names if other != auxiliary]
    assert list(config.evaluation.datasets) == rest
  assert configs["mvtec"].evaluation.datasets == ("visa",)
  assert configs["anomalyclip_visa"].evaluation.datasets == ("mvtec_ad",)
  assert list(configs["prompt_ensemble"].evaluation.datasets) == names
  assert all(
    config.feature_cache.dtype == config.clip.dtype
    for config in configs.values()
  )
  planned = runs.list_runs(configs, [3, 4])
  assert ("visa", 4) in planned and ("prompt_ensemble", 4) not in planned
  only = plan.make_configs(["cops"], ["visa"], {})
  assert list(only) == ["mvtec"]
  assert plan.needed_datasets(only) == ["mvtec_ad", "visa"]


def content(**values):
  return {
    "config": {"clip": {"weights": "clip", "dtype": "float32"}},
    "version": "1",
    "versions": {"jax": "0"},
    "device": "1 x cpu",
    "clip_sha256": "abc",
    "trained_on": "something",
    "datasets": {
      name: {
        "mean": dict.fromkeys(METRICS) | {"image_auroc": value},
        "is_published": True,
        "notes": ["2 images fewer"],
        "data_sha256": "a",
        "seconds": 1.0,
        "num_images": 5,
      }
      for name, value in values.items()
    },
  }


def test_the_report(tmp_path, capsys):
  """A method's two recipes are one row, beside its paper and other methods."""
  configs = plan.make_configs(
    ["cops", "prompt_ensemble"], ["mvtec_ad", "visa"], {}
  )
  found = {
    "visa": {0: content(mvtec_ad=0.94), 1: content(mvtec_ad=0.96)},
    "mvtec": {0: content(visa=0.8), 1: content(visa=0.8)},
    "prompt_ensemble": {0: content(mvtec_ad=0.7, visa=0.6)},
  }
  report.write(tmp_path, configs, {}, found, {"mvtec with seed 2": "why"})
  lines = [line.split() for line in capsys.readouterr().out.splitlines()]
  assert lines[1][:7] == ["mvtec_ad", "cops", "2", "95.0", "±", "1.4", "(+0.0)"]
  assert lines[2][:4] == ["mvtec_ad", "cops,", "paper", "95.0"]
  assert lines[3][:4] == ["mvtec_ad", "prompt_ensemble", "1", "70.0"]
  # 87.5 against 90.2.
  assert ["overall", "mean", "cops", "2", "87.5"] in [row[:5] for row in lines]
  page = (tmp_path / "report.html").read_text()
  assert "not the papers' recipes" not in page
  assert "<td>95.0 ± 1.4 (+0.0)<small>95.0</small></td>" in page
  assert "87.5 ± 0.7 (-2.7)<small>90.2</small>" in page
  assert "mvtec with seed 2" in page and "2 images fewer" in page
  assert "evaluated on 10 images in 2 s" in page
  written = json.loads((tmp_path / "table.json").read_text())
  assert written["failures"] == {"mvtec with seed 2": "why"}


def test_the_disk_must_be_large_enough(monkeypatch, tmp_path):
  configs = plan.make_configs(
    *(["cops"], ["btad"]),
    {
      **{"clip.weights": "demo", "data_dir": str(tmp_path / "new" / "data")},
      **{"model.image_size_pixels": 112, "model.feature_layers": (5,)},
      **{"model.num_value_layers": 3, "model.deep_prompt_depth": 3},
      "model.num_heads": 8,
    },
  )
  found = {
    name: needs.Data(1000, 10**9, "to be prepared") for name in ("visa", "btad")
  }
  clip = clip_of(configs["visa"])
  side = 112 // clip.config.vision_config.patch_size
  record = 4 * (1 + side**2) * clip.config.projection_dim
  needed = 2 * 10**9 + 2 * 1000 * record

  def free(number):
    usage = types.SimpleNamespace(free=number)
    monkeypatch.setattr(needs.shutil, "disk_usage", lambda _: usage)

  free(needed - 1)
  with pytest.raises(InputError, match="the disk is too small: 2 GB of prep"):
    needs.describe(configs, [("visa", 0)], found, clip)
  free(needed)
  text = needs._describe_disk(configs, found, clip)
  assert text.startswith("2 GB of prepared data, ")
