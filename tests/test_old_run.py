"""A work directory of version 0.1 can still be used.

data/old_run was written by that version: its run, the CLIP and images that it
was trained on, and what `predict` printed. The scores are with today's keys of
the noise, which are the files' contents and were the folder's name then.
"""

import csv
import json
import shutil

import numpy as np
import pytest

from cops_jax import export
from cops_jax.images.decoding import decode_image
from helpers.scripts import ROOT, run

OLD_RUN = ROOT / "tests" / "data" / "old_run"
IMAGES = "tests/data/old_run/images"  # As it is recorded.
PREDICTIONS = [
  json.loads(line)
  for line in (OLD_RUN / "predictions.jsonl").read_text().splitlines()
]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("old") / "run"
  return shutil.copytree(OLD_RUN / "run", workdir)


@pytest.fixture(scope="module")
def features_dir(tmp_path_factory):
  """The run has a cache, by the field that was config.train.cache_features."""
  return tmp_path_factory.mktemp("features")


def test_it_is_evaluated(workdir, features_dir):
  code, _, err = run(
    "eval.py", f"--workdir={workdir}", f"--config.features_dir={features_dir}"
  )
  assert code == 0, err
  assert "computing features of images: 8/8" in err
  rows, want = (
    list(csv.DictReader((folder / "scores.csv").read_text().splitlines()))
    for folder in (workdir, OLD_RUN)
  )
  assert [row["path"] for row in rows] == [row["path"] for row in want]
  for row, other in zip(rows, want, strict=True):
    score = pytest.approx(float(other["image_score"]), abs=1e-5)
    assert float(row["image_score"]) == score


def test_it_predicts_with_its_thresholds(workdir):
  code, out, err = run(
    "-m", "cops_jax.predict", f"{IMAGES}/plate/test", f"--workdir={workdir}"
  )
  assert code == 0, err
  rows = [json.loads(line) for line in out.splitlines()]
  assert [row["path"] for row in rows] == [row["path"] for row in PREDICTIONS]
  for row, want in zip(rows, PREDICTIONS, strict=True):
    assert row.keys() == want.keys()
    assert row["image_score"] == pytest.approx(want["image_score"], abs=1e-5)
    for name in ("threshold", "threshold_method"):
      assert row[name] == want[name]
    is_close = abs(want["image_score"] - want["threshold"]) < 1e-4
    assert row["verdict"] == want["verdict"] or is_close


def test_it_is_exported(workdir, tmp_path):
  out = tmp_path / "old.cops"
  code, _, err = run(
    "-m", "cops_jax.export", f"--workdir={workdir}", f"--out={out}"
  )
  assert code == 0, err
  images = [decode_image(ROOT / row["path"], 48) for row in PREDICTIONS[:2]]
  scores = export.load(out)(np.stack(images))["image_score"]
  want = [row["image_score"] for row in PREDICTIONS[:2]]
  np.testing.assert_allclose(scores, want, atol=1e-5)


def test_it_goes_on_with_its_own_config(workdir, features_dir):
  """Nothing is left to be trained; nothing says that it is another run."""
  before = (workdir / "metrics.jsonl").read_text()
  arguments = (f"--workdir={workdir}", f"--config.features_dir={features_dir}")
  config = f"--config=configs/recorded.py:{OLD_RUN / 'run'}"
  code, _, err = run("train.py", config, *arguments)
  assert code == 0, err
  assert f"resuming {workdir} from step 20" in err
  assert (workdir / "metrics.jsonl").read_text() == before
