"""Tables and files, written for made-up results."""

import csv
import dataclasses
import json

import pytest

from cops_jax.evaluation.results import Evaluated
from cops_jax.metrics import METRICS
from cops_jax.reporting import tables
from helpers.made_results import FIRST, SECOND, make_result
from helpers.scripts import ROOT


def test_the_table_contains_all_results():
  images = {"c0": ["c0/x.png", "c0/y.png"]}
  result = dataclasses.replace(make_result(FIRST, SECOND), normal_images=images)
  results = {"made": result}
  lines = tables.format_table(results).splitlines()
  assert lines[0].split() == (
    "data set category image AUROC image AP image F1-max pixel AUROC pixel AP"
    " pixel F1-max pixel AUPRO pixel AUPRO-200"
  ).split(" ")
  cells = [line.split() for line in lines]
  first = ["90.0", "80.0", "70.0", "60.0", "50.0", "40.0", "30.0", "20.0"]
  assert ["made", "c0", *first] in cells
  assert ["made", "c1", "70.0", "60.0", "50.0", *["n/a"] * 5] in cells
  assert ["made", "mean", "80.0", "70.0", "60.0", *first[3:]] in cells
  assert len({len(line) for line in lines[:-3]}) == 1
  assert lines[-3:] == [
    "made: files skipped as unreadable: 1 of 2; see results.json",
    "made: pixel metrics include the masks of 1 of 1 anomalous images",
    "made: reference images of c0 (2): c0/x.png, c0/y.png",
  ]


def test_groups_of_data_sets_have_means():
  results = {
    name: make_result(metrics)
    for name, metrics in (
      ("mvtec_ad", FIRST),
      ("visa", SECOND),
      ("head_ct", FIRST),
    )
  }
  cells = [line.split() for line in tables.format_table(results).splitlines()]
  assert ["industrial", "mean", "mean", "80.0"] in [row[:4] for row in cells]
  assert ["overall", "mean", "mean", "83.3"] in [row[:4] for row in cells]
  assert not any(row[0] == "medical" for row in cells)


def test_results_json_and_scores_csv_contain_all_results(tmp_path):
  """docs/results.md describes every field of results.json."""
  evaluated = Evaluated(
    {"made": make_result(FIRST, SECOND)},
    {"visa": "absent"},
    {"btad": "broken"},
    {"version": "1", "checkpoint": "step 3 of runs/made"},
  )
  tables.write_results(tmp_path, evaluated)
  stored = json.loads((tmp_path / "results.json").read_text())
  assert stored["schema_version"] == 1 and stored["version"] == "1"
  assert stored["not_prepared"] == {"visa": "absent"}
  assert stored["failed"] == {"btad": "broken"}
  made = stored["datasets"]["made"]
  assert made["mean"]["image_auroc"] == pytest.approx(0.8)
  assert made["categories"]["c1"]["metrics"]["pixel_aupro"] is None
  assert made["categories"]["c1"]["undefined"]["pixel_aupro"] == "no masks"
  assert made["num_images"] == made["num_anomalous_images"] == 1
  assert made["num_masks"] == made["categories"]["c0"]["num_masks"] == 1
  assert made["images_per_second"] == pytest.approx(0.4)
  assert made["skipped_files"] == {"c0/b.png": "truncated"}
  with (tmp_path / "scores.csv").open() as file:
    (row,) = csv.DictReader(file)
  assert row == {
    **{"dataset": "made", "category": "c0", "path": "c0/a.png"},
    **{"label": "1", "image_score": "0.75"},
  }
  names = sorted(path.name for path in tmp_path.iterdir())
  assert names == ["results.json", "scores.csv"]
  text = (ROOT / "docs" / "results.md").read_text()
  for name in (*stored, *made, *made["categories"]["c0"], *METRICS):
    assert f"`{name}`" in text, name


def test_names_can_contain_any_characters():
  result = make_result(FIRST, SECOND)
  first, second = result.categories.values()
  categories = {"mean": first, "line\nbreak": second}
  found = {"a|b": dataclasses.replace(result, categories=categories)}
  lines = tables.format_table(found).splitlines()
  assert [line.split()[1] for line in lines if line.startswith("a|b  ")] == [
    *("mean", "line\\nbreak", "mean")
  ]
