"""Tables and files of made-up results, and the comparison of runs."""

import csv
import dataclasses
import json

import pytest

from cops_jax import reporting
from cops_jax.commands.compare import main
from cops_jax.errors import InputError
from cops_jax.files import seal, unseal
from cops_jax.metrics import METRICS
from helpers.made_results import FIRST, SECOND, make_result, row
from helpers.scripts import ROOT

PROVENANCE = {"version": "1", "checkpoint": "step 3 of runs/made"}


@pytest.fixture
def results():
  return {"made": make_result(FIRST, SECOND)}


def write(workdir, results, skipped=None, failed=None):
  reporting.write_results(
    workdir, results, PROVENANCE, skipped or {}, failed or {}
  )
  return json.loads((workdir / "results.json").read_text())


def test_table(results):
  lines = reporting.format_table(results).splitlines()
  assert lines[0].split() == (
    "data set category image AUROC image AP image F1-max pixel AUROC pixel AP"
    " pixel F1-max pixel AUPRO pixel AUPRO-200"
  ).split(" ")
  cells = [line.split() for line in lines]
  first = ["90.0", "80.0", "70.0", "60.0", "50.0", "40.0", "30.0", "20.0"]
  assert ["made", "c0", *first] in cells
  assert ["made", "c1", "70.0", "60.0", "50.0", *["n/a"] * 5] in cells
  assert ["made", "mean", "80.0", "70.0", "60.0", *first[3:]] in cells
  assert len({len(line) for line in lines[:-1]}) == 1
  assert lines[-1] == (
    "made: 1 of 2 images left out, as they could not be read: see results.json"
  )


def test_groups_of_data_sets():
  results = {
    name: make_result(metrics)
    for name, metrics in (
      ("mvtec_ad", FIRST),
      ("visa", SECOND),
      ("head_ct", FIRST),
    )
  }
  cells = [
    line.split() for line in reporting.format_table(results).splitlines()
  ]
  assert ["industrial", "mean", "mean", "80.0"] in [row[:4] for row in cells]
  assert ["overall", "mean", "mean", "83.3"] in [row[:4] for row in cells]
  assert not any(row[0] == "medical" for row in cells)


def read_csv(path):
  with path.open() as file:
    return list(csv.DictReader(file))


def test_files(results, tmp_path):
  stored = write(tmp_path, results, {"visa": "absent"}, {"btad": "broken"})
  assert stored["schema_version"] == 1 and stored["version"] == "1"
  assert stored["not_prepared"] == {"visa": "absent"}
  assert stored["failed"] == {"btad": "broken"}
  made = stored["datasets"]["made"]
  assert made["mean"]["image_auroc"] == pytest.approx(0.8)
  assert made["categories"]["c1"]["metrics"]["pixel_aupro"] is None
  assert made["categories"]["c1"]["undefined"]["pixel_aupro"] == "no masks"
  assert made["num_images"] == made["num_anomalous_images"] == 1
  assert made["images_per_second"] == pytest.approx(0.4)
  assert made["skipped_files"] == {"c0/b.png": "truncated"}
  rows = read_csv(tmp_path / "results.csv")
  assert [row["category"] for row in rows] == ["c0", "c1", "mean"]
  assert rows[1]["pixel_auroc"] == ""
  assert float(rows[2]["pixel_ap"]) == pytest.approx(0.5)
  assert read_csv(tmp_path / "scores.csv") == [
    dict(
      dataset="made",
      category="c0",
      path="c0/a.png",
      label="1",
      image_score="0.75",
    )
  ]
  names = sorted(path.name for path in tmp_path.iterdir())
  assert names == ["results.csv", "results.json", "scores.csv"]


def test_every_field_of_the_results_is_documented(results, tmp_path):
  stored = write(tmp_path, results)
  text = (ROOT / "docs" / "results.md").read_text()
  made = stored["datasets"]["made"]
  for name in (*stored, *made, *made["categories"]["c0"], *METRICS):
    assert f"`{name}`" in text, name


def test_compare(tmp_path, capsys):
  for index, metrics in enumerate((FIRST, SECOND)):
    write(tmp_path / f"run{index}", {"made": make_result(metrics)})
  write(tmp_path / "run2", {"other": make_result(row(*[0.5] * 8))})
  names = [str(tmp_path / f"run{index}") for index in range(3)]
  out = tmp_path / "table.csv"
  main([*names, f"--csv={out}"])
  cells = [line.split() for line in capsys.readouterr().out.splitlines()]
  # Standard deviation of 0.9 and 0.7: 0.2 / sqrt(2).
  assert ["made", "image", "AUROC", "90.0", "70.0", "n/a", "80.0", "14.14"] in (
    cells
  )
  # One run alone has no deviation.
  one = ["made", "pixel", "AUPRO", "30.0", "n/a", "n/a", "30.0", "n/a"]
  assert one in cells
  assert any(row[0] == "other" for row in cells)
  rows = read_csv(out)
  assert rows[0]["mean"] == "80.0" and len(rows) == 16


def test_methods_have_means_of_their_own(tmp_path):
  methods = ("cops", "anomalyclip", "anomalyclip")
  workdirs = [tmp_path / f"run{index}" for index in range(3)]
  for workdir, method, metrics in zip(
    workdirs, methods, (FIRST, FIRST, SECOND), strict=True
  ):
    provenance = PROVENANCE | {"config": {"method": method}}
    found = {"made": make_result(metrics)}
    reporting.write_results(workdir, found, provenance, {}, {})
  rows = reporting.compare(workdirs)
  assert rows[0][5:] == [
    *("cops mean", "cops std", "anomalyclip mean", "anomalyclip std")
  ]
  assert rows[1][2:] == [
    *("90.0", "90.0", "70.0"),
    *("90.0", "n/a", "80.0", "14.14"),
  ]


def test_runs_that_cannot_be_compared_are_reported(tmp_path, capsys):
  path = tmp_path / "results.json"
  for text, expected in (
    (None, "Evaluate first"),
    ("{", "is damaged"),
    ('{"schema_version": 1}', "is damaged"),
    ("[]", "is damaged"),
    ('{"schema_version": 9}', "has the schema version 9"),
  ):
    if text:
      path.write_text(text)
    with pytest.raises(InputError, match=expected):
      reporting.compare([tmp_path])
  with pytest.raises(SystemExit, match="^error: .*schema version 9"):
    main([str(tmp_path)])


def test_runs_on_unlike_data_are_not_averaged(tmp_path):
  workdirs = [tmp_path / "a", tmp_path / "b"]
  for workdir, digest in zip(workdirs, ("aa", "bb"), strict=True):
    found = {
      "visa": make_result(FIRST),
      "btad": dataclasses.replace(make_result(FIRST), data_sha256=digest),
    }
    write(workdir, found)
  rows = {(row[0], row[1]): row for row in reporting.compare(workdirs)}
  assert rows["visa", "image AUROC"][2:] == ["90.0", "90.0", "90.0", "0.00"]
  for name in ("btad", "overall mean"):
    assert rows[name, "image AUROC"][2:] == ["90.0", "90.0", "unlike data", ""]


@pytest.mark.parametrize("value", (7, -0.1, "x"))
def test_metrics_that_are_none_are_refused(tmp_path, value):
  write(tmp_path, {"visa": make_result(FIRST)})
  path = tmp_path / "results.json"
  content = unseal(path.read_text())
  content["datasets"]["visa"]["mean"]["image_ap"] = value
  path.write_text(seal(content))
  with pytest.raises(InputError, match="results.json is damaged"):
    reporting.read_means(tmp_path)
  path.write_text(path.read_text().replace("0.9", "0.8", 1))
  with pytest.raises(InputError, match="changed since it was written"):
    reporting.read_means(tmp_path)


def test_names_of_any_characters():
  found = {"a|b": make_result(FIRST, SECOND)}
  found["a|b"] = dataclasses.replace(
    found["a|b"],
    categories={
      "mean": found["a|b"].categories["c0"],
      "line\nbreak": found["a|b"].categories["c1"],
    },
  )
  lines = reporting.format_table(found).splitlines()
  assert [line.split()[1] for line in lines if line.startswith("a|b  ")] == [
    *("mean", "line\\nbreak", "mean")
  ]
