"""Evaluation of several data sets: stored results, skipping and failures."""

import dataclasses
import json
import logging
import os
import shutil
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from cops_jax.datasets import SPECIFICATIONS
from cops_jax.errors import InputError
from cops_jax.evaluation import many
from cops_jax.evaluation.evaluator import Evaluator
from cops_jax.reporting import report
from cops_jax.runs import lock
from helpers import original_layouts
from helpers.images import write_folder
from helpers.made_results import FIRST, SECOND, make_result


@pytest.fixture(autouse=True)
def _messages(caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger("cops_jax"), "propagate", True)
  caplog.set_level(logging.INFO, "cops_jax")


@pytest.fixture
def evaluated(monkeypatch):
  """Returns a list of the data sets that are scored and not read from disk."""
  names = []
  run = Evaluator.run

  def note(self, trainable, backbone_params, examples, *args, **options):
    names.append(examples.name)
    return run(self, trainable, backbone_params, examples, *args, **options)

  monkeypatch.setattr(Evaluator, "run", note)
  return names


@pytest.fixture
def quick(monkeypatch):
  """Replaces scoring by made-up results."""
  result = dataclasses.replace(make_result(FIRST, SECOND), skipped={})
  monkeypatch.setattr(Evaluator, "run", lambda *_, **__: result)


@pytest.fixture
def workdir(trained, tmp_path):
  return shutil.copytree(trained[0], tmp_path / "run")


@pytest.fixture
def folder(tmp_path):
  return write_folder(tmp_path / "a", 6, has_masks=False)


@pytest.fixture
def evaluate(config, workdir, evaluated):
  """Returns a function that evaluates data sets.

  It returns the results and the names of the data sets that were scored.
  """

  def call(*names, **options):
    evaluated.clear()
    found = many.evaluate(config, workdir, names=names, **options)
    return found, list(evaluated)

  return call


def test_other_data_sets_are_evaluated_after_a_failure(
  evaluate, folder, workdir, tmp_path, caplog
):
  names = [
    folder,
    *(write_folder(tmp_path / name, 6, has_masks=False) for name in "bc"),
  ]
  broken = tmp_path / "b" / "test" / "good" / "02.png"
  content = broken.read_bytes()
  broken.write_bytes(content[:50])
  found, scored = evaluate(*names)
  assert scored == ["a", "b", "c"]
  assert set(found.results) == {"a", "c"} and not found.skipped
  reason = found.failed[names[1]]
  assert "2.png" in reason and "Replace the file" in reason
  assert "/b failed: " in caplog.text
  assert ": NaN" not in (workdir / "evaluation" / "a.json").read_text()

  broken.write_bytes(content)
  again, scored = evaluate(*names)
  assert scored == ["b"] and not again.failed
  assert list(again.results) == ["a", "b", "c"]
  for name in "ac":
    assert again.results[name].images == found.results[name].images
    assert again.results[name].pictures == found.results[name].pictures
    assert str(again.results[name]) == str(found.results[name])


def test_a_result_is_reused_only_for_the_same_inputs(
  quick, evaluate, config, folder, tmp_path, monkeypatch
):
  """The inputs are the prompts, the backbone, the version, config and data."""

  def is_scored():
    found, scored = evaluate(folder)
    assert not found.failed
    return bool(scored)

  assert is_scored() and not is_scored()
  hash_prompts, load_backbone = many.prompts.hash_prompts, many.load_backbone
  for place, attribute, value in (
    (many, "__version__", "0"),
    (many.prompts, "hash_prompts", lambda tree: hash_prompts(tree)[::-1]),
    (
      many,
      "load_backbone",
      lambda c: dataclasses.replace(load_backbone(c), sha256="0"),
    ),
  ):
    with monkeypatch.context() as patch:
      patch.setattr(place, attribute, value)
      patch.setattr(many, "check_backbone", mock.Mock())
      assert is_scored()
    assert is_scored()
  config.evaluation.batch_size = 3
  assert not is_scored()
  with config.unlocked():
    config.evaluation.beta = 0.7
  assert is_scored()

  image = tmp_path / "a/test/good/00.png"

  def write(color):
    """Writes an image whose size and time do not depend on the color."""
    Image.new("RGB", (20, 20), color).save(image, "BMP")
    os.utime(image, (0, 0))

  write("red")
  assert is_scored()
  write("blue")
  assert not is_scored()
  config.input.compare_bytes = True
  assert is_scored()
  write("red")
  assert is_scored()

  config.evaluation.num_normal_images = 1
  (reason,) = evaluate(folder)[0].failed.values()
  assert "are drawn, cannot be read: split 'train' of data set" in reason
  image = tmp_path / "a/train/good/00.png"
  image.parent.mkdir(parents=True)
  for color in ("red", "blue"):  # The evaluated split does not change.
    write(color)
    assert is_scored() and not is_scored()


def test_a_damaged_result_is_reported_and_recomputed(
  quick, evaluate, folder, workdir, caplog
):
  evaluate(folder)
  kept = workdir / "evaluation" / "a.json"
  for damage, reason in (
    (lambda text: text[:-100], "cannot be reused"),
    (
      lambda text: text.replace('"image_score": 0.', '"image_score": 0.1', 1),
      "its contents do not match its SHA-256",
    ),
    (lambda text: "[]", "it is a list"),
  ):
    caplog.clear()
    text = kept.read_text()
    kept.write_text(damage(text))
    assert kept.read_text() != text
    assert evaluate(folder)[1] == ["a"]
    assert f"{kept} " in caplog.text and reason in caplog.text
    assert evaluate(folder)[1] == []


def test_saved_maps_belong_to_the_stored_result(evaluate, folder, workdir):
  evaluate(folder)
  maps = workdir / "maps" / "a"
  assert evaluate(folder, save_maps=True)[1] == ["a"]  # There were no maps.
  assert [file.name for file in maps.iterdir()] == ["a.npz"]
  assert evaluate(folder, save_maps=True)[1] == []
  assert evaluate(folder)[1] == []
  (maps / "of_an_earlier_one.npz").write_bytes(b"maps")
  (maps / "killed.partial").touch()
  (maps / "mine.txt").touch()
  assert evaluate(folder, save_maps=True)[1] == ["a"]
  assert {file.name for file in maps.iterdir()} == {"a.npz", "mine.txt"}

  def fail(*_, **__):
    raise InputError("killed")

  # The old result is deleted first, so that its maps are never mixed with new
  # ones.
  with mock.patch.object(Evaluator, "run", fail):
    (maps / "a.npz").write_bytes(b"other")
    assert evaluate(folder, save_maps=True)[0].failed
  assert evaluate(folder)[1] == ["a"]


def test_all_evaluates_the_thirteen_data_sets(
  evaluate, config, folder, workdir, caplog
):
  """Data sets without files are skipped; those with files are prepared."""
  config.data_dir = str(workdir.parent / "data")
  config.evaluation.num_pictures = 1
  nothing, scored = evaluate("all")
  assert not nothing.results and not nothing.failed and not scored
  reason = (
    f"not prepared in {config.data_dir}. Put the original files in DIR and run:"
    " cops datasets prepare --all --manual_dir=DIR"
    f" --data_dir={config.data_dir}"
  )
  assert nothing.skipped == dict.fromkeys(SPECIFICATIONS, reason)
  # One line reports all skipped data sets.
  assert [text for text in caplog.messages if "skipping" in text] == [
    f"skipping {', '.join(SPECIFICATIONS)}: {reason}"
  ]

  manual = workdir.parent / "manual"
  for name in original_layouts.NAMES:
    original_layouts.write_tree(name, manual)
  config.manual_dir = str(manual)
  found, scored = evaluate("all")
  assert not found.failed and not found.skipped
  assert scored == list(SPECIFICATIONS)
  page = report.write(workdir, found).read_text()
  content = json.loads((workdir / "results.json").read_text())
  assert set(content["means"]) == {
    *("industrial mean", "medical mean", "overall mean")
  }
  assert np.isnan(found.results["head_ct"].mean["pixel_aupro"])
  assert found.results["isic"].mean["pixel_auroc"] >= 0
  assert "<small>" not in page  # The papers used all images.
  for name, row in SPECIFICATIONS.items():
    assert not found.results[name].is_published
    assert f"than the {row.num_test_images} of the published" in page

  # Prepared data sets need no original files.
  config.manual_dir = ""
  data = workdir.parent / "data" / "btad"
  shutil.rmtree(data)
  found, scored = evaluate("all", folder)
  assert list(found.skipped) == ["btad"] and scored == ["a"]
  assert list(found.results) == [
    "a",
    *(name for name in SPECIFICATIONS if name != "btad"),
  ]
  assert (
    "Put the original files in DIR and run: cops datasets prepare --all"
    in found.skipped["btad"]
  )
  one, _ = evaluate("btad", "mpdd")
  assert "original files were not found" in one.failed["btad"]
  assert list(one.results) == ["mpdd"]


def test_bad_names_and_a_second_evaluation_are_refused(
  quick, evaluate, evaluated, folder, workdir, tmp_path
):
  for name, expected in (
    ("mvtec", "unknown data set 'mvtec' .*the known data sets are mvtec_ad"),
    ("folder:/nowhere", "/nowhere is not a folder"),
  ):
    with pytest.raises(InputError, match=expected):
      evaluate(folder, name)
  with lock.hold(workdir, "evaluation"):
    with pytest.raises(InputError, match="in use for evaluation by process"):
      evaluate(folder)
  assert not evaluated
  other = write_folder(tmp_path / "b" / "a", 6, has_masks=False)
  found, scored = evaluate(folder, other)
  assert scored == ["a"]
  assert "another data set is also called 'a'" in found.failed[other]


def test_a_folder_with_a_published_name_is_not_published_data(
  evaluate, workdir, tmp_path
):
  """The folder has the name of a published data set, but six images."""
  name = write_folder(tmp_path / "head_ct", 6, has_masks=False)
  found, _ = evaluate(name)
  assert not found.results["head_ct"].is_published
  assert "<small>96.1" not in report.write(workdir, found).read_text()
