"""Means, deviations and differences of runs, and `cops compare`."""

import csv
import math

import pytest

from cops_jax.commands.compare import main
from cops_jax.errors import InputError
from cops_jax.evaluation.results import Evaluated
from cops_jax.files import seal, unseal
from cops_jax.metrics import METRICS
from cops_jax.reporting import tables
from cops_jax.reporting.comparison import compare, format_rows
from cops_jax.reporting.papers import paper_results
from helpers.made_results import FIRST, SECOND, make_result


def content(is_published=True, data="a", **means):
  """Returns content of results.json with some metrics for each data set."""
  return {
    "datasets": {
      name: {
        "mean": dict.fromkeys(METRICS) | mean,
        "is_published": is_published,
        "data_sha256": data,
      }
      for name, mean in means.items()
    }
  }


def texts(rows):
  return {(row.dataset, row.name, row.metric): row.text for row in rows}


def test_differences_are_from_the_base_with_the_same_seeds():
  def run(value, **more):
    return content(screws={"image_auroc": value, **more})

  rows = compare(
    {
      "full": {0: run(0.8, pixel_ap=0.5), 1: run(0.9, pixel_ap=0.3)},
      "no_vae": {1: run(0.7)},
      "no_more": {1: run(0.6), 2: run(0.6)},
    },
    base="full",
  )
  assert texts(rows) == {
    ("screws", "full", "image_auroc"): "85.0 ± 7.1",
    ("screws", "full", "pixel_ap"): "40.0 ± 14.1",
    ("screws", "no_vae", "image_auroc"): "70.0 (-20.0)",
    ("screws", "no_more", "image_auroc"): "60.0 ± 0.0",
  }
  lines = format_rows(rows, "ablation").splitlines()
  assert lines[0].split()[:5] == ["data", "set", "ablation", "runs", "image"]
  assert lines[2].split() == ["screws", "no_vae", "1", "70.0", "(-20.0)", "n/a"]


def test_methods_are_compared_with_their_papers():
  """Only results on the published data have differences."""
  rows = compare(
    {
      "cops": {
        0: content(mvtec_ad={"image_auroc": 0.94}, btad={"image_auroc": 0.93}),
        1: content(mvtec_ad={"image_auroc": 0.96}, btad={"image_auroc": 0.93}),
      },
      "anomalyclip": {
        0: content(btad={"image_auroc": 0.8})
        | content(btad={"image_auroc": 0.8}, mvtec_ad={"image_auroc": 0.9}),
      },
      "prompt_ensemble": {
        0: content(mvtec_ad={"image_auroc": 0.7}, btad={"image_auroc": 0.6})
      },
    },
    papers={
      name: paper_results({"method": name}) for name in ("cops", "anomalyclip")
    },
  )
  found = texts(rows)
  assert found["mvtec_ad", "cops", "image_auroc"] == "95.0 ± 1.4 (+0.0)"
  assert found["btad", "cops", "image_auroc"] == "93.0 ± 0.0 (-0.6)"
  assert found["btad", "anomalyclip", "image_auroc"] == "80.0 (-8.3)"
  assert found["btad", "prompt_ensemble", "image_auroc"] == "60.0"
  # The mean of the paper is over the same data sets.
  mean = "industrial mean", "cops", "image_auroc"
  assert found[mean] == "94.0 ± 0.7 (-0.3)"
  assert found["overall mean", "prompt_ensemble", "image_auroc"] == "65.0"
  assert not any(name == "medical mean" for name, *_ in found)
  lines = format_rows(rows, "method", "paper").splitlines()
  cells = [line.split() for line in lines]
  assert ["btad", "cops,", "paper", "93.6", "94.9", "94.6", "42.6"] in cells
  runs = {"cops": {0: content(False, btad={"image_auroc": 0.9})}}
  row = compare(runs, papers={"cops": paper_results({"method": "cops"})})[0]
  assert row.text == "90.0" and row.reference == pytest.approx(0.936)


def test_group_means_are_over_data_sets_that_every_name_has():
  runs = {
    "a": {
      0: content(visa={"image_ap": 0.5}, btad={"image_ap": 0.7}, endo={}),
    },
    "b": {0: content(visa={"image_ap": 0.6}, endo={"image_ap": 0.1})},
  }
  assert not any("mean" in row.dataset for row in compare(runs))
  runs["b"][0] |= content(visa={"image_ap": 0.6}, btad={"image_ap": 0.9})
  found = texts(compare(runs))
  for group in ("industrial mean", "overall mean"):
    assert found[group, "a", "image_ap"] == "60.0"
    assert found[group, "b", "image_ap"] == "75.0"


def test_runs_on_different_data_are_not_averaged():
  runs = {
    0: content(visa={"image_ap": 0.5}),
    1: content(data="b", visa={"image_ap": 0.7}),
  }
  rows = compare({"first": {0: runs[0]}, "mean": runs})
  assert [row.text for row in rows] == ["50.0", "data differ"]
  assert math.isnan(rows[1].mean) and math.isnan(rows[1].deviation)


def write(workdir, method, metrics):
  workdir.mkdir(exist_ok=True)
  evaluated = Evaluated(
    {"made": make_result(metrics)}, {}, {}, {"config": {"method": method}}
  )
  tables.write_results(workdir, evaluated)
  return str(workdir)


def test_the_command_compares_run_directories(tmp_path, capsys):
  """Each method with several runs has a mean and a deviation."""
  workdirs = [
    write(tmp_path / str(number), method, metrics)
    for number, (method, metrics) in enumerate(
      (("cops", FIRST), ("cops", SECOND), ("anomalyclip", FIRST))
    )
  ]
  out = tmp_path / "table.csv"
  main([*workdirs, f"--csv={out}"])
  lines = [line.split() for line in capsys.readouterr().out.splitlines()]
  assert lines[1][:4] == ["made", workdirs[0], "1", "90.0"]
  assert lines[2][-1] == "n/a"
  # Standard deviation of 0.9 and 0.7: 0.2 / sqrt(2).
  mean = ["made", "mean", "of", "cops", "2", "80.0", "±", "14.1"]
  assert lines[4][:8] == mean and len(lines) == 5
  assert lines[4][-1] == "20.0"  # Only one run defines it.
  with out.open() as file:
    rows = list(csv.DictReader(file))
  (row,) = (
    row
    for row in rows
    if (row["name"], row["metric"]) == ("mean of cops", "image_auroc")
  )
  assert float(row["mean"]) == pytest.approx(0.8)
  assert float(row["deviation"]) == pytest.approx(0.02**0.5)
  assert row["runs"] == "2" and row["difference"] == ""


@pytest.mark.parametrize(
  "text, expected",
  (
    (None, "Run `cops evaluate"),
    ('{"schema_version": 1}', "is damaged"),
    (seal({"schema_version": 9}), "has the schema version 9"),
  ),
)
def test_runs_that_cannot_be_compared_are_reported(tmp_path, text, expected):
  if text:
    (tmp_path / "results.json").write_text(text)
  with pytest.raises(SystemExit, match=f"^error: .*{expected}"):
    main([str(tmp_path)])


@pytest.mark.parametrize("value", (7, "x", 10**400))
def test_values_that_are_not_metrics_are_refused(tmp_path, value):
  write(tmp_path, "cops", FIRST)
  path = tmp_path / "results.json"
  stored = unseal(path.read_text())
  stored["datasets"]["made"]["mean"]["image_ap"] = value
  path.write_text(seal(stored))
  with pytest.raises(InputError, match="results.json is damaged"):
    tables.means_of(tables.read_results(tmp_path))
  path.write_text(path.read_text().replace("0.9", "0.8", 1))
  with pytest.raises(InputError, match="contents do not match"):
    tables.means_of(tables.read_results(tmp_path))
