"""Tables, files and pictures of made-up results."""

import csv
import io
import json
import math

import numpy as np
import pytest
from PIL import Image

from cops_jax import reporting

NAN = math.nan


def row(*values):
  return dict(zip(reporting.METRICS, values, strict=True))


@pytest.fixture
def results():
  rng = np.random.default_rng(0)
  categories = {
    "bottle": row(0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3),
    "cable": row(0.5, 0.4, 0.3, NAN, NAN, NAN, NAN),
  }
  images = [
    reporting.ImageResult("made", "bottle", "bottle/a, b.png", 1, 0.75),
    reporting.ImageResult("made", "cable", "cable/c.png", 0, 0.25),
  ]
  pictures = [
    reporting.Picture(
      category="bottle",
      image_score=0.75,
      sort_key=0,
      image=np.full((20, 20, 3), 200, np.uint8),
      mask=np.eye(20, dtype=np.uint8),
      anomaly_map=rng.random((20, 20)),
    )
  ]
  return {"made": reporting.DatasetResult(categories, images, pictures)}


def test_mean_leaves_out_what_is_undefined(results):
  assert results["made"].mean == pytest.approx(
    row(0.7, 0.6, 0.5, 0.6, 0.5, 0.4, 0.3)
  )


def test_table(results):
  lines = reporting.format_table(results).splitlines()
  assert " ".join(lines[0].split()) == (
    "data set category image auroc image ap image f1 max"
    " pixel auroc pixel ap pixel f1 max pixel aupro"
  )
  texts = [" ".join(line.split()) for line in lines]
  assert "made bottle 90.0% 80.0% 70.0% 60.0% 50.0% 40.0% 30.0%" in texts
  assert "made cable 50.0% 40.0% 30.0% n/a n/a n/a n/a" in texts
  assert "made mean 70.0% 60.0% 50.0% 60.0% 50.0% 40.0% 30.0%" in texts
  assert len({len(line) for line in lines}) == 1


def test_skipped_files_are_told(results, tmp_path):
  result = results["made"]
  assert "left out" not in reporting.format_table(results)
  results["made"] = reporting.DatasetResult(
    result.categories, result.images, [], {"cable/d.png": "truncated"}
  )
  assert reporting.format_table(results).endswith(
    "made: 1 of 3 images left out, as they could not be read: see results.json"
  )
  reporting.write_results(tmp_path, results, {})
  stored = json.loads((tmp_path / "results.json").read_text())["datasets"]
  assert stored["made"]["skipped_files"] == {"cable/d.png": "truncated"}


def read_csv(path):
  with path.open() as file:
    return list(csv.DictReader(file))


def test_files(results, tmp_path):
  sheets = reporting.write_results(tmp_path, results, {"version": "1"})
  stored = json.loads((tmp_path / "results.json").read_text())
  assert stored.pop("version") == "1"
  stored = stored["datasets"]
  assert stored["made"]["mean"]["image_auroc"] == pytest.approx(0.7)
  assert stored["made"]["categories"]["cable"] == dict(
    image_auroc=0.5, image_ap=0.4, image_f1_max=0.3
  )
  rows = read_csv(tmp_path / "results.csv")
  assert [row["category"] for row in rows] == ["bottle", "cable", "mean"]
  assert rows[1]["pixel_auroc"] == ""
  assert float(rows[2]["pixel_ap"]) == pytest.approx(0.5)
  rows = read_csv(tmp_path / "scores.csv")
  assert rows[0] == dict(
    dataset="made",
    category="bottle",
    path="bottle/a, b.png",
    label="1",
    image_score="0.75",
  )
  assert sheets == [tmp_path / "pictures" / "made.png"]
  names = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
  assert names == ["made.png", "results.csv", "results.json", "scores.csv"]


def test_picture_sheet(results):
  picture = results["made"].pictures[0]
  sheet = Image.open(io.BytesIO(reporting.picture_sheet([picture] * 3)))
  pixels = np.asarray(sheet)
  colors = {tuple(color) for color in pixels.reshape(-1, 3)}
  assert (200, 200, 200) in colors  # The image.
  assert len(colors) > 100  # The anomaly map.
  one = Image.open(io.BytesIO(reporting.picture_sheet([picture])))
  assert sheet.width > 2.9 * one.width and sheet.height == one.height
