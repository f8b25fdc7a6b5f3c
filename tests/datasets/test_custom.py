"""A folder in MVTec's layout."""

import errno
import logging
import os
import shutil

import pytest

from cops_jax import datasets
from cops_jax.errors import InputError
from cops_jax.inputs import pipeline
from helpers.listings import check_examples, plates


def test_folder(tree):
  check_examples(tree, f"folder:{tree.root}")
  check_examples(tree, f"folder:{tree.root}", "train")


def test_folder_of_one_category(tree):
  examples = datasets.load(f"folder:{tree.root / 'long'}", "test")
  assert examples.name == "long"
  assert {e["path"] for e in examples} == {"test/good/0.jpg", "test/bent/1.jpg"}
  assert {e["category"] for e in examples} == {"long"}


@pytest.mark.parametrize("kind", ("folder", "meta_json"))
def test_missing_folder_is_refused(kind, tmp_path):
  with pytest.raises(InputError, match=f"nowhere is not a folder.*{kind}:PATH"):
    datasets.load(f"{kind}:{tmp_path / 'nowhere'}", "test")
  with pytest.raises(InputError, match="the path is not a folder"):
    datasets.load(f"{kind}:", "test")


@pytest.mark.parametrize("normal", ("Good", "normal", "OK"))
def test_names_of_normal_images(tmp_path, normal):
  plates(tmp_path / "plates", normal)
  found = datasets.load(f"folder:{tmp_path}/plates", "test")
  kinds = {example["path"]: example["anomaly_kind"] for example in found}
  assert kinds == {
    f"nut/test/{normal}/0.png": "good",
    "nut/test/dent/1.png": "dent",
  }


def test_what_is_left_out_is_said(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger("cops_jax"), "propagate", True)
  tree = plates(tmp_path / "plates")
  (tree.root / "nut/test/good/more").mkdir()
  (tree.root / "nut/test/good/2.gif").write_bytes(b"GIF89a")
  notes = datasets.load(f"folder:{tree.root}", "test").notes
  assert len(notes) == 2
  for name in ("2.gif", "more"):
    assert any(f"{name} is not an image file" in note for note in notes)
    assert f"{name} is not an image file" in caplog.text


def test_a_folder_that_cannot_be_read_is_reported(tmp_path, monkeypatch):
  tree = plates(tmp_path / "plates")
  real = os.scandir

  def scandir(path):
    if os.path.basename(path) == "dent":
      raise PermissionError(errno.EACCES, "Permission denied", str(path))
    return real(path)

  monkeypatch.setattr(os, "scandir", scandir)
  with pytest.raises(InputError, match="dent cannot be read: Permission"):
    datasets.load(f"folder:{tree.root}", "test")


def test_names_of_any_bytes(tmp_path):
  tree = plates(tmp_path / "plates")
  for name in ("a b|c.png", "line\nbreak.png", os.fsdecode(b"\xff\xfe.png")):
    shutil.copy(
      tree.root / "nut/test/good/0.png", tree.root / "nut/test/good" / name
    )
  found = datasets.load(f"folder:{tree.root}", "test")
  paths = sorted(example["path"] for example in found)
  assert "nut/test/good/\\xff\\xfe.png" in paths and len(set(paths)) == 5
  assert len(found.fingerprint()) == 64


def test_the_fingerprint_of_a_folder(tmp_path):
  """It changes with every file's state and label, not with the place."""
  tree = plates(tmp_path / "plates")

  def find(root, by_contents=False):
    return datasets.load(f"folder:{root}", "test", by_contents=by_contents)

  by_times, by_bytes = (find(tree.root, flag) for flag in (False, True))
  by_times, by_bytes = by_times.fingerprint(), by_bytes.fingerprint()
  root = tree.root.rename(tmp_path / "moved")
  assert find(root).fingerprint() == by_times
  mask = root / "nut/ground_truth/dent/1.png"
  os.utime(mask, (0, 0))
  touched = find(root).fingerprint()
  assert touched != by_times
  assert find(root, by_contents=True).fingerprint() == by_bytes
  content = bytearray(mask.read_bytes())
  content[-1] ^= 1
  mask.write_bytes(content)
  os.utime(mask, (0, 0))
  assert find(root).fingerprint() == touched
  assert find(root, by_contents=True).fingerprint() != by_bytes
  (root / "nut/test/dent").rename(root / "nut/test/hole")
  (root / "nut/ground_truth/dent").rename(root / "nut/ground_truth/hole")
  assert find(root).fingerprint() != touched


def test_training_noise_is_keyed_by_path_and_content(tmp_path):
  tree = plates(tmp_path / "one")
  shutil.copytree(tree.root, tmp_path / "two")
  options = pipeline.BatchOptions(28, 14, batch_size=2, example_ids=True)

  def ids(name):
    examples = datasets.load(f"folder:{tmp_path}/{name}", "test")
    (batch,) = pipeline.iterate_batches(examples, options, range(1))
    ids = batch["example_id"].tolist()
    return dict(zip(batch["path"].tolist(), ids, strict=True))

  assert ids("one") == ids("two")
  shutil.copy(
    tmp_path / "two/nut/test/dent/1.png", tmp_path / "two/nut/test/good/0.png"
  )
  one, two = ids("one"), ids("two")
  assert [path for path in one if one[path] != two[path]] == [
    "nut/test/good/0.png"
  ]
  assert two["nut/test/good/0.png"] != two["nut/test/dent/1.png"]
