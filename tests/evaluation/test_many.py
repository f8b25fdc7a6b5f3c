"""Evaluation of many data sets: resumed, skipped, failing."""

import dataclasses
import json
import logging
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from cops_jax import reporting
from cops_jax.datasets import SPECIFICATIONS
from cops_jax.errors import InputError
from cops_jax.evaluation import dataset, many
from cops_jax.runs import lock
from helpers import original_layouts
from helpers.images import write_folder


@pytest.fixture
def evaluated(monkeypatch):
  """Names of the data sets that are really evaluated."""
  names = []
  real = dataset.evaluate_dataset

  def evaluate_dataset(*args, name, **kwargs):
    names.append(name)
    return real(*args, name=name, **kwargs)

  monkeypatch.setattr(dataset, "evaluate_dataset", evaluate_dataset)
  return names


@pytest.fixture
def workdir(trained, tmp_path):
  return shutil.copytree(trained[0], tmp_path / "run")


def write_images(root):
  return write_folder(root, 6, has_masks=False)


def evaluation_names(found):
  assert not found.failed
  return list(found.results)


def test_an_evaluation_goes_on_and_is_resumed(
  config, workdir, tmp_path, evaluated, caplog, monkeypatch
):
  monkeypatch.setattr(logging.getLogger("cops_jax"), "propagate", True)
  names = [
    write_folder(tmp_path / name, 6, has_masks=False)
    for name in ("a", "b", "c")
  ]
  broken = tmp_path / "b" / "test" / "good" / "02.png"
  content = broken.read_bytes()
  broken.write_bytes(content[:50])
  found = many.evaluate(config, workdir, names=names)
  assert evaluated == ["a", "b", "c"]
  assert set(found.results) == {"a", "c"} and not found.skipped
  assert (
    "2.png" in found.failed[names[1]]
    and "Replace the file" in found.failed[names[1]]
  )
  assert "/b failed: " in caplog.text

  broken.write_bytes(content)
  del evaluated[:]
  again = many.evaluate(config, workdir, names=names)
  assert evaluated == ["b"] and not again.failed
  assert list(again.results) == ["a", "b", "c"]
  for name in ("a", "c"):
    assert again.results[name].images == found.results[name].images
    assert again.results[name].pictures == found.results[name].pictures

  # What results depend on makes them be computed again; other fields do not.
  del evaluated[:]
  config.evaluation.batch_size = 3
  assert not many.evaluate(config, workdir, names=names).failed
  assert evaluated == []
  Image.new("RGB", (20, 20)).save(broken)
  many.evaluate(config, workdir, names=names, save_maps=True)
  assert evaluated == ["a", "b", "c"]  # There were no maps of them.
  many.evaluate(config, workdir, names=names, save_maps=True)
  many.evaluate(config, workdir, names=names)
  assert evaluated == ["a", "b", "c"]
  with config.unlocked():
    config.evaluation.beta = 0.7
  many.evaluate(config, workdir, names=names[:1], save_maps=True)
  assert evaluated == ["a", "b", "c", "a"]
  kept = workdir / "evaluation" / "a.json"
  kept.write_bytes(kept.read_bytes()[:-100])
  assert not many.evaluate(config, workdir, names=names[:1]).failed
  assert evaluated[4:] == ["a"]
  assert f"{kept} cannot be used again" in caplog.text


def test_all_thirteen_data_sets(config, workdir, tmp_path, evaluated, caplog):
  """One command prepares and evaluates them; without files all are skipped."""
  config.data_dir = str(tmp_path / "data")
  config.evaluation.num_pictures = 1
  with caplog.at_level(logging.INFO, "cops_jax"):
    nothing = many.evaluate(config, workdir, names=["all"])
  assert set(nothing.skipped) == set(SPECIFICATIONS)
  assert not nothing.results and not nothing.failed and not evaluated
  reason = (
    f"not prepared in {config.data_dir}. With the original files in DIR,"
    " prepare with: cops datasets prepare --all --manual_dir=DIR"
    f" --data_dir={config.data_dir}"
  )
  assert set(nothing.skipped.values()) == {reason}
  # Said once, in one line.
  assert [text for text in caplog.messages if "skipping" in text] == [
    f"skipping {', '.join(SPECIFICATIONS)}: {reason}"
  ]

  manual = tmp_path / "manual"
  for name in original_layouts.NAMES:
    original_layouts.write_tree(name, manual)
  config.manual_dir = str(manual)
  found = many.evaluate(config, workdir, names=["all"])
  assert not found.failed and not found.skipped
  assert evaluated == list(SPECIFICATIONS)
  page = reporting.write(workdir, found)
  content = json.loads((workdir / "results.json").read_text())
  assert set(content["means"]) == {
    *("industrial mean", "medical mean", "overall mean")
  }
  assert np.isnan(found.results["head_ct"].mean["pixel_aupro"])
  assert found.results["isic"].mean["pixel_auroc"] >= 0
  text = page.read_text()
  # These have a few images, so the paper's results are not shown.
  assert "<small>" not in text
  for row in SPECIFICATIONS.values():
    assert f"against the {row.num_test_images} of the published" in text

  # Prepared is enough; but not by another version.
  config.manual_dir = ""
  shutil.move(tmp_path / "data/btad/1.1.0", tmp_path / "data/btad/0.9.0")
  del evaluated[:]
  found = many.evaluate(config, workdir, names=["all"])
  assert list(found.skipped) == ["btad"] and evaluated == []
  more = [write_images(tmp_path / "a"), "all"]
  assert evaluation_names(many.evaluate(config, workdir, names=more)) == [
    "a",
    *(name for name in SPECIFICATIONS if name != "btad"),
  ]
  assert (
    "holds version 0.9.0 of it, and version 1.1.0 is needed. With the original"
    " files in DIR, prepare with: cops datasets prepare --all"
    in found.skipped["btad"]
  )
  one = many.evaluate(config, workdir, names=["btad", "mpdd"])
  assert "original files are not there" in one.failed["btad"]
  assert list(one.results) == ["mpdd"]


def test_names_are_checked_before_anything_is_done(config, workdir, evaluated):
  for name, expected in (
    ("mvtec", "unknown data set 'mvtec'; known are mvtec_ad, visa"),
    ("folder:/nowhere", "/nowhere is not a folder"),
  ):
    with pytest.raises(InputError, match=expected):
      many.evaluate(config, workdir, names=["demo_unseen", name])
  assert not evaluated


def test_two_folders_of_one_name_are_refused(
  config, workdir, tmp_path, evaluated
):
  names = [
    write_folder(tmp_path / name / "a", 6, has_masks=False)
    for name in ("x", "y")
  ]
  found = many.evaluate(config, workdir, names=names)
  assert evaluated == ["a"]
  assert "another data set is called 'a' too" in found.failed[names[1]]


def test_a_kept_result_is_of_the_same_prompts_clip_version_and_data(
  config, workdir, tmp_path, evaluated, monkeypatch, caplog
):
  monkeypatch.setattr(logging.getLogger("cops_jax"), "propagate", True)
  name = write_images(tmp_path / "a")

  def evaluate():
    evaluated.clear()
    assert not many.evaluate(config, workdir, names=[name]).failed
    return bool(evaluated)

  assert evaluate() and not evaluate()
  hash_prompts, clip_of = many.prompts.hash_prompts, many.clip_of
  for place, attribute, value in (
    (many, "__version__", "0"),
    (many.prompts, "hash_prompts", lambda tree: hash_prompts(tree)[::-1]),
    (
      many,
      "_load_checked_clip",
      lambda config, *_: dataclasses.replace(clip_of(config), sha256="0"),
    ),
  ):
    with monkeypatch.context() as patch:
      patch.setattr(place, attribute, value)
      assert evaluate()
    assert evaluate()
  image = tmp_path / "a/test/good/00.png"

  def write(color):
    """The same size and time for each."""
    Image.new("RGB", (20, 20), color).save(image, "BMP")
    os.utime(image, (0, 0))

  write("red")
  assert evaluate()
  write("blue")
  assert not evaluate()
  config.input.compare_bytes = True
  assert evaluate()
  write("red")
  assert evaluate()
  # A digit that was changed since.
  kept = workdir / "evaluation" / "a.json"
  text = kept.read_text()
  kept.write_text(text.replace('"image_score": 0.', '"image_score": 0.1', 1))
  assert kept.read_text() != text
  assert evaluate() and "it was changed since it was written" in caplog.text


def test_a_second_evaluation_says_who_is_there(config, workdir, tmp_path):
  name = write_images(tmp_path / "a")
  with lock.hold(workdir, "evaluation"):
    with pytest.raises(InputError, match="in use for evaluation by process"):
      many.evaluate(config, workdir, names=[name])


def test_the_name_of_a_folder_proves_nothing(config, workdir, tmp_path):
  """Six images in a folder that is called as a published data set."""
  name = write_images(tmp_path / "head_ct")
  found = many.evaluate(config, workdir, names=[name])
  assert not found.results["head_ct"].is_published
  page = reporting.write(workdir, found)
  assert "<small>96.1" not in page.read_text()
