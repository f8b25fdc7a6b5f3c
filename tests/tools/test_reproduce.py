"""The papers' table from thirteen tiny trees; killed; beside the papers."""

import csv
import json
import shutil
import signal
import types

import pytest

from cops_jax.datasets import SPECIFICATIONS
from cops_jax.errors import InputError
from cops_jax.files import seal
from cops_jax.metrics import METRICS
from cops_jax.reporting.papers import paper_results
from helpers import original_layouts
from helpers.runs import wait_for
from helpers.scripts import Program, run
from tools.reproduce import needs, plan, report


@pytest.fixture(scope="module")
def manual_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("manual")
  for name in original_layouts.NAMES:
    original_layouts.write_tree(name, folder)
  return folder


@pytest.fixture
def arguments(manual_dir, clip_folder, tmp_path):
  return [
    *("-m", "tools.reproduce", f"--manual_dir={manual_dir}"),
    f"--config.data_dir={tmp_path / 'data'}",
    f"--config.clip.weights={clip_folder}",
    "--config.model.image_size_pixels=48",
    "--config.model.feature_layers=(3,)",
    "--config.model.num_value_layers=2",
    "--config.model.num_heads=4",
    "--config.model.deep_prompt_depth=2",
    "--config.train.num_epochs=1",
    "--config.train.checkpoint_every_steps=1",
    # The same in both recipes, whose programs are then compiled once.
    "--config.model.smoothing_window_patches=1",
    "--config.train.reconstruction=none",
    "--config.evaluation.alpha=0.3",
    "--config.evaluation.beta=0.5",
  ]


def test_thirteen_data_sets_killed_twice(arguments, tmp_path):
  workdir = tmp_path / "paper"
  whole = [*arguments, f"--workdir={workdir}"]
  first = workdir / "visa" / "seed-0"

  process = Program(*whole, num_devices=1)
  wait_for(first / "checkpoints" / "1" / "manifest.json", process)
  process.kill()
  out, _ = process.communicate()
  assert process.returncode == -signal.SIGKILL
  assert "13 sets, 228 images: 13 to be prepared" in out
  assert "2, 0 finished: visa (0), mvtec (0)" in out

  process = Program(*whole, num_devices=1)
  kept = first / "evaluation" / "btad.json"
  wait_for(kept, process)
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate()
  assert process.returncode == 75
  assert "13 sets, 228 images: 13 prepared" in out
  assert "memory" not in out  # It fits, as the run has begun.
  assert "resuming" in err and "the same command goes on" in err
  assert "Traceback" not in err
  time = kept.stat().st_mtime_ns

  code, out, err = run(*whole, num_devices=1)
  assert code == 0
  assert kept.stat().st_mtime_ns == time
  assert "training on" in err and "run 2 of 2: mvtec with seed 0" in err
  table = (workdir / "table.txt").read_text()
  assert out.endswith(f"{table}report: {workdir / 'report.html'}\n")
  with open(workdir / "table.csv") as file:
    rows = list(csv.DictReader(file))
  numbers = {(row["data set"], row["metric"]): row for row in rows}
  # The papers' table, with a number of ours for each of theirs.
  for name in SPECIFICATIONS:
    for metric, paper in paper_results("cops")[name].items():
      row = numbers[name, metric]
      assert float(row["paper"]) == 100 * paper and row["difference"] == ""
      assert 0 <= float(row["mean"]) <= 100 and row["seeds"] == "1"
  assert "no difference where the images are others" in table
  page = (workdir / "report.html").read_text()
  assert page.count('href="visa/seed-') == page.count('href="mvtec/seed-') == 1
  assert "not the papers' recipes" in page and "train.num_epochs=1" in page


def test_what_is_missing_is_said_and_nothing_is_done(
  arguments, manual_dir, tmp_path
):
  fewer = tmp_path / "manual"
  shutil.copytree(manual_dir, fewer)
  shutil.rmtree(fewer / "btad")
  shutil.rmtree(fewer / "visa")  # Can be downloaded.
  workdir = tmp_path / "paper"
  arguments[2] = f"--manual_dir={fewer}"
  code, out, err = run(*arguments, f"--workdir={workdir}")
  assert code == 1 and not out and "1 of 13 data sets are missing" in err
  line = next(line for line in err.splitlines() if line.startswith("btad"))
  assert SPECIFICATIONS["btad"].homepage in line
  assert not workdir.exists() and not (tmp_path / "data").exists()


def test_a_dry_run_only_says_what_it_takes(arguments, tmp_path):
  workdir = tmp_path / "paper"
  code, out, err = run(
    *arguments,
    f"--workdir={workdir}",
    "--dry_run",
    "--datasets=visa,btad",
    "--methods=cops,prompt_ensemble",
    num_devices=1,
  )
  assert code == 0, err
  # VisA and BTAD, and MVTec AD to train on.
  assert "3 sets, 108 images: 3 to be prepared" in out
  assert "3, 0 finished: visa (0), mvtec (0), prompt_ensemble (0)" in out
  for word in ("disk", "memory", "time    at least"):
    assert word in out
  assert not workdir.exists()
  code, _, err = run(
    *("-m", "tools.reproduce", "--config=demo", f"--workdir={workdir}")
  )
  assert code == 1 and "--config is not read here" in err


def test_bad_input_is_reported(arguments, tmp_path):
  workdir = f"--workdir={tmp_path / 'paper'}"
  for argument, expected in (
    ("--methods=cosp", "no table of the method 'cosp'"),
    ("--datasets=vsia", "'vsia' is not a data set of the tables"),
    ("--seeds=a", "--seeds=a: invalid literal"),
    ("--config.train.num_epochs=a", "num_epochs"),
    ("--config.train.learning_rate=-1", "config.train.learning_rate is -1"),
  ):
    code, out, err = run(*arguments, workdir, argument)
    assert code == 1 and expected in err and "Traceback" not in err
    assert not out


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
  runs = plan.make_runs(configs, [3, 4])
  assert runs.count(("visa", 4)) == 1 and ("prompt_ensemble", 4) not in runs
  only = plan.make_configs(["cops"], ["visa"], {})
  assert list(only) == ["mvtec"]
  assert plan.needed_datasets(only) == ["mvtec_ad", "visa"]


def content(method, values, is_published=True):
  return {
    "config": {"clip": {"weights": "clip", "dtype": "float32"}},
    "version": "1",
    "versions": {"jax": "0"},
    "device": "1 x cpu",
    "clip_sha256": "abc",
    "datasets": {
      name: {
        "mean": {metric: row.get(metric) for metric in METRICS},
        "is_published": is_published,
        "notes": [],
        "data_sha256": "a",
        "seconds": 1.0,
        "num_images": 5,
      }
      for name, row in values.items()
    },
  }


def test_methods_side_by_side(tmp_path):
  methods = ["cops", "anomalyclip", "prompt_ensemble"]
  configs = plan.make_configs(methods, ["mvtec_ad", "btad"], {})
  auroc = lambda *values: {  # noqa: E731
    name: {"image_auroc": value, "pixel_aupro_200": 0.5}
    for name, value in zip(("mvtec_ad", "btad"), values, strict=False)
  }
  results = {
    ("visa", 0): content("cops", auroc(0.94, 0.93)),
    ("visa", 1): content("cops", auroc(0.96, 0.93)),
    ("anomalyclip_mvtec", 0): content(
      "anomalyclip", {"btad": auroc(0, 0.8)["btad"]}
    ),
    ("anomalyclip_visa", 0): content("anomalyclip", auroc(0.9), False),
    ("prompt_ensemble", 0): content("prompt_ensemble", auroc(0.7, 0.6)),
  }
  rows = {
    (row.name, row.metric): row.cells
    for row in report.make_rows(configs, results)
  }
  cell = rows["mvtec_ad", "image_auroc"]["cops"]
  assert cell.texts == ("95.0", "95.0 ± 1.4", "+0.0")
  cell = rows["btad", "image_auroc"]["cops"]
  assert cell.texts == ("93.6", "93.0 ± 0.0", "-0.6")
  assert rows["mvtec_ad", "image_auroc"]["anomalyclip"].texts == (
    *("91.5", "90.0", ""),
  )
  assert rows["btad", "image_auroc"]["prompt_ensemble"].texts == (
    *("", "60.0", ""),
  )
  # Of AnomalyCLIP's paper alone, but ours of all.
  cells = rows["btad", "pixel_aupro_200"]
  assert cells["cops"].texts == ("", "50.0 ± 0.0", "")
  assert cells["anomalyclip"].texts == ("74.8", "50.0", "-24.8")
  mean = rows["industrial, mean of 2", "image_auroc"]
  assert mean["cops"].texts == ("94.3", "94.0 ± 0.7", "-0.3")
  assert mean["anomalyclip"].texts == ("89.9", "85.0", "")
  assert mean["prompt_ensemble"].texts == ("", "65.0", "")
  # No method has any pixel AUROC: there are no values, and no means.
  assert rows["btad", "pixel_auroc"]["cops"].texts == ("94.6", "", "")
  assert not any(
    "mean" in name and metric == "pixel_auroc" for name, metric in rows
  )

  report.write(tmp_path, configs, {}, results, {"mvtec with seed 0": "why"})
  page = (tmp_path / "report.html").read_text()
  assert "not the papers' recipes" not in page
  assert "mvtec with seed 0" in page and "95.0 ± 1.4" in page
  table = (tmp_path / "table.txt").read_text().splitlines()
  assert table[0].split()[3:9] == [
    *("cops", "paper", "cops", "ours", "cops", "diff"),
  ]
  assert table[-1].endswith("published ones: mvtec_ad")
  written = json.loads((tmp_path / "table.json").read_text())
  assert written["failures"] == {"mvtec with seed 0": "why"}


def test_results_of_another_config_are_not_shown(tmp_path):
  configs = plan.make_configs(["cops"], ["mvtec_ad"], {})
  runs = plan.make_runs(configs, [0])
  folder = tmp_path / "visa" / "seed-0"
  folder.mkdir(parents=True)
  config = {**configs["visa"].to_dict(), "seed": 0}
  found = content("cops", {"mvtec_ad": {"image_auroc": 0.9}})
  found |= {"schema_version": 1, "means": {}, "config": config}
  (folder / "results.json").write_text(seal(found))
  assert report.read_runs(configs, runs, tmp_path).keys() == {("visa", 0)}
  configs["visa"].evaluation.alpha = 0.3
  assert not report.read_runs(configs, runs, tmp_path)


def test_the_disk_must_be_large_enough(monkeypatch, tmp_path):
  from cops_jax.weights import clip_of

  configs = plan.make_configs(
    *(["cops"], ["btad"]),
    {
      **{"clip.weights": "demo", "data_dir": str(tmp_path / "new" / "data")},
      **{"model.image_size_pixels": 112, "model.feature_layers": (5,)},
      **{"model.num_value_layers": 3, "model.deep_prompt_depth": 3},
      "model.num_heads": 8,
    },
  )
  runs = plan.make_runs(configs, [0])
  found = {
    name: needs.Data(1000, 10**9, "to be prepared") for name in ("visa", "btad")
  }
  clip = clip_of(configs["visa"])
  sizes = clip.config
  side = 112 // sizes.vision_config.patch_size
  record = 4 * (1 + side**2) * sizes.projection_dim
  features = 2 * 1000 * record

  def free(number):
    usage = types.SimpleNamespace(free=number)
    monkeypatch.setattr(needs.shutil, "disk_usage", lambda _: usage)

  free(2 * 10**9 + features - 1)
  with pytest.raises(InputError, match="the disk is too small: 2 GB of prep"):
    needs.describe(configs, runs, [], found, clip, is_begun=False)
  free(2 * 10**9 + features)
  text = needs._describe_disk(configs, found, clip, configs["visa"])
  assert text.startswith("2 GB of prepared data and ")
