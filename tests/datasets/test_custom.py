"""Custom data: a folder in MVTec's layout, and meta.json lists."""

import errno
import json
import logging
import os
import pathlib
import shutil

import pytest

from cops_jax import datasets
from cops_jax.digests import describe_difference
from cops_jax.errors import InputError
from cops_jax.inputs import pipeline
from helpers import original_layouts
from helpers.original_layouts import Tree, write_parts

MASK = "long/ground_truth/bent/1_mask.png"


@pytest.fixture
def tree(tmp_path):
  """Two categories, only the first of which has masks."""
  tree = Tree(tmp_path / "screws")
  for category in ("long", "short"):
    tree.image(f"{category}/train/good/0.png", "train", category)
    tree.image(f"{category}/test/good/0.jpg", "test", category)
    mask = "long/ground_truth/bent/1_mask.png" if category == "long" else None
    tree.image(
      f"{category}/test/bent/1.jpg", "test", category, "bent", "L", mask
    )
  tree.mask("long/ground_truth/bent/1_mask.png")
  return tree


def check_examples(tree, name, split="test"):
  examples = datasets.load(name, split)
  assert examples.name == "screws"
  expected = {p: row for p, row in tree.expected.items() if row.split == split}
  assert {example["path"] for example in examples} == expected.keys()
  for example in examples:
    row = expected[example["path"]]
    assert example["image"] == tree.root / example["path"]
    assert example["id"] == example["path"]
    assert example["dataset"] == "screws"
    assert example["category"] == row.category
    assert example["anomaly_kind"] == row.anomaly_kind
    assert example["label"] == row.label
    assert example["has_mask"] == (row.category == "long")
    if row.mask:
      assert example["mask"] == tree.root / row.mask
    else:
      assert isinstance(example["mask"], bytes)


def test_folder(tree):
  check_examples(tree, f"folder:{tree.root}")
  check_examples(tree, f"folder:{tree.root}", "train")


def test_folder_of_one_category(tree):
  examples = datasets.load(f"folder:{tree.root / 'long'}", "test")
  assert examples.name == "long"
  assert {e["path"] for e in examples} == {"test/good/0.jpg", "test/bent/1.jpg"}
  assert {e["category"] for e in examples} == {"long"}


def test_folder_is_read_again(tree):
  tree.image("long/test/good/new.png", "test", "long")
  check_examples(tree, f"folder:{tree.root}")


def test_folder_that_lacks_a_mask_is_refused(tree):
  tree.image("long/test/bent/2.jpg", "test", "long", "bent")
  with pytest.raises(InputError, match="1 masks for the 2 .*2.jpg has no"):
    datasets.load(f"folder:{tree.root}", "test")


def test_folder_without_images_is_refused(tmp_path):
  with pytest.raises(InputError, match="expected CATEGORY/test/good"):
    datasets.load(f"folder:{tmp_path}", "test")


@pytest.mark.parametrize("kind", ("folder", "meta_json"))
def test_missing_folder_is_refused(kind, tmp_path):
  with pytest.raises(InputError, match=f"nowhere is not a folder.*{kind}:PATH"):
    datasets.load(f"{kind}:{tmp_path / 'nowhere'}", "test")
  with pytest.raises(InputError, match="the path is not a folder"):
    datasets.load(f"{kind}:", "test")


def entry(path, row):
  return {
    "img_path": path,
    "mask_path": row.mask or "",
    "cls_name": row.category,
    "specie_name": row.anomaly_kind,
    "anomaly": row.label,
  }


def write_meta(tree, change=lambda splits: None):
  splits = {"train": {}, "test": {}}
  for path, row in tree.expected.items():
    entries = splits[row.split].setdefault(row.category, [])
    entries.append(entry(path, row))
  change(splits)
  (tree.root / "meta.json").write_text(json.dumps(splits))


def test_meta_json(tree):
  write_meta(tree)
  check_examples(tree, f"meta_json:{tree.root}")
  examples = datasets.load(f"meta_json:{tree.root}/meta.json", "train")
  assert {e["path"] for e in examples} == {
    *("long/train/good/0.png", "short/train/good/0.png")
  }


def change_entry(field, value):
  def change(splits):
    splits["test"]["long"][1][field] = value

  return change


@pytest.mark.parametrize(
  "change, expected",
  (
    (change_entry("img_path", "../outside.png"), "test long: ../outside.png i"),
    (change_entry("mask_path", "/etc/passwd"), "/etc/passwd is outside"),
    (change_entry("mask_path", "long/../../x.png"), "../x.png is outside"),
    (change_entry("img_path", "absent.png"), "absent.png does not exist"),
    (change_entry("img_path", "long/test/good/0.jpg"), "0.jpg 2 times"),
    (change_entry("anomaly", "yes"), "anomaly .0 or 1."),
    (change_entry("img_path", None), "entries with img_path"),
    (lambda splits: splits["test"].update(long={}), "expected a list"),
    (lambda splits: splits.pop("test"), 'has no "test" images'),
    (lambda splits: splits.update(test=[1]), "not a table of categories"),
  ),
)
def test_bad_meta_json_is_refused(tree, change, expected):
  write_meta(tree, change)
  with pytest.raises(InputError, match=expected):
    datasets.load(f"meta_json:{tree.root}", "test")


def test_meta_json_that_lacks_some_masks_is_refused(tree):
  tree.image("long/test/bent/2.jpg", "test", "long", "bent")
  write_meta(tree)
  with pytest.raises(InputError, match="1 of 2 anomalous images have no"):
    datasets.load(f"meta_json:{tree.root}", "test")


@pytest.mark.parametrize("text", ('{"test": ', "\x00", "[]"))
def test_unreadable_meta_json_is_refused(tree, text):
  (tree.root / "meta.json").write_text(text)
  with pytest.raises(InputError, match="meta.json"):
    datasets.load(f"meta_json:{tree.root}", "test")
  (tree.root / "meta.json").unlink()
  with pytest.raises(InputError, match="meta.json cannot be read"):
    datasets.load(f"meta_json:{tree.root}", "test")


@pytest.fixture
def workable(config, tmp_path):
  """Custom data to train on, and their config: a step for every image."""
  tree = write_parts(tmp_path / "parts")
  config.train.dataset = f"folder:{tree.root}"
  config.train.batch_size = 1
  config.evaluation.datasets = (f"folder:{tree.root}",)
  return tree, config


def test_training_and_evaluation_on_a_folder(workable, tmp_path):
  from cops_jax import training
  from cops_jax.evaluation import many

  tree, config = workable
  workdir = tmp_path / "run"
  assert int(training.train(config, workdir).step) == 6
  results = many.evaluate(config, workdir).results
  assert list(results) == ["parts"]
  assert len(results["parts"].images) == 6
  assert 0 <= results["parts"].mean["pixel_auroc"] <= 1
  write_meta(tree)
  config.evaluation.datasets = (f"meta_json:{tree.root}",)
  # Read from the list, the same images have the same scores.
  other = many.evaluate(config, workdir).results
  assert other["parts"].images == results["parts"].images
  config.evaluation.datasets = (f"meta_json:{tree.root}", f"folder:{tree.root}")
  (reason,) = many.evaluate(config, workdir).failed.values()
  assert "called 'parts' too" in reason


def test_a_truncated_image_in_a_run(workable, tmp_path):
  from cops_jax import reporting, training
  from cops_jax.evaluation import many
  from cops_jax.runs import checkpoints, metrics_log

  tree, config = workable
  workdir = tmp_path / "run"
  path = tree.root / "nut/test/dent/1.png"
  path.write_bytes(path.read_bytes()[:60])
  config.train.log_every_steps = 1
  with pytest.raises(InputError, match="dent/1.png of data set 'parts'"):
    training.train(config, workdir)
  # The steps before are not lost.
  steps = [row["step"] for row in metrics_log.read_metrics(workdir)]
  with checkpoints.Checkpoints(workdir) as saved:
    assert saved.latest_step() == steps[-1] > 0
  # The same run goes on with the option to leave such files out.
  config.input.unreadable_files = "skip"
  assert int(training.train(config, workdir).step) == 6
  skipped = json.loads((workdir / "skipped_files.json").read_text())
  assert list(skipped) == ["nut/test/dent/1.png"]
  config.input.unreadable_files = "error"
  (reason,) = many.evaluate(config, workdir).failed.values()
  assert "dent/1.png of data set 'parts'" in reason
  config.input.unreadable_files = "skip"
  found = many.evaluate(config, workdir)
  reporting.write(workdir, found)
  assert len(found.results["parts"].images) == 5
  stored = json.loads((workdir / "results.json").read_text())
  assert stored["datasets"]["parts"]["skipped_files"].keys() == skipped.keys()
  for path in tree.root.rglob("test/*/*.png"):
    path.write_bytes(b"")
  (reason,) = many.evaluate(config, workdir).failed.values()
  assert reason == "no image of 'parts' can be read"
  with pytest.raises(InputError, match="no image of 'parts' can be read"):
    training.train(config, tmp_path / "other")


def test_training_without_masks_is_refused(tree, config, tmp_path):
  from cops_jax import training

  config.train.dataset = f"folder:{tree.root}"
  with pytest.raises(InputError, match="cannot be trained on.*without masks"):
    training.train(config, tmp_path / "some")
  config.train.dataset = f"folder:{tree.root}/short"
  with pytest.raises(InputError, match="'short' cannot be trained on"):
    training.train(config, tmp_path / "none")
  assert not (tmp_path / "none").exists()  # Before anything is computed.


def test_a_split_without_images_is_refused(tmp_path):
  tree = Tree(tmp_path / "one")
  tree.image("a/test/good/0.png", "test", "a")
  with pytest.raises(InputError, match="split 'train' of .* has no images"):
    datasets.load(f"folder:{tree.root}", "train")


def plates(root, normal="good"):
  """A normal image and an anomalous one with a mask."""
  tree = original_layouts.Tree(root)
  tree.image(f"nut/test/{normal}/0.png", "test", "nut")
  tree.image("nut/test/dent/1.png", "test", "nut", "dent")
  tree.mask("nut/ground_truth/dent/1.png")
  return tree


@pytest.mark.parametrize("normal", ("good", "Good", "normal", "OK"))
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
  real = pathlib.Path.iterdir

  def iterdir(path):
    if path.name == "dent":
      raise PermissionError(errno.EACCES, "Permission denied", str(path))
    return real(path)

  monkeypatch.setattr(pathlib.Path, "iterdir", iterdir)
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
  assert json.loads(json.dumps(found.digests()).encode()).keys() == set(paths)


def test_digests_of_a_folder(tmp_path):
  """They know each file's state, and nothing of the folder's place."""
  tree = plates(tmp_path / "plates")
  name = f"folder:{tree.root}"
  before = datasets.load(name, "test").digests()
  bytes_before = datasets.load(name, "test", by_contents=True).digests()
  moved = tree.root.rename(tmp_path / "moved")
  name = f"folder:{moved}"
  assert datasets.load(name, "test").digests() == before
  mask = moved / "nut/ground_truth/dent/1.png"
  os.utime(mask, (0, 0))
  after = datasets.load(name, "test").digests()
  assert describe_difference(before, after) == "1 changed (nut/test/dent/1.png)"
  bytes_after = datasets.load(name, "test", by_contents=True).digests()
  assert bytes_after == bytes_before
  content = bytearray(mask.read_bytes())
  content[-1] ^= 1
  mask.write_bytes(content)
  os.utime(mask, (0, 0))
  assert datasets.load(name, "test").digests() == after
  bytes_after = datasets.load(name, "test", by_contents=True).digests()
  assert bytes_after != bytes_before


def test_noise_is_keyed_by_path_and_content(tmp_path):
  tree = plates(tmp_path / "one")
  shutil.copytree(tree.root, tmp_path / "two")
  options = pipeline.BatchOptions(28, 14, batch_size=2)

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


@pytest.mark.parametrize(
  "rewrite",
  (
    lambda root, path: f"{root}/{path}",
    lambda root, path: f"/home/them/data/{root.name}/{path}",
    lambda root, path: f"D:\\data\\{path}".replace("/", "\\"),
    lambda root, path: path.replace("/", "\\"),
    lambda root, path: f"./{path}",
  ),
)
def test_paths_as_scripts_write_them(tree, rewrite):
  def change(splits):
    for categories in splits.values():
      for entries in categories.values():
        for row in entries:
          for field in ("img_path", "mask_path"):
            if row[field]:
              row[field] = rewrite(tree.root, row[field])
        entries.append({"img_path": "", "mask_path": "", "anomaly": 0})

  write_meta(tree)
  want = datasets.load(f"meta_json:{tree.root}", "test").digests()
  write_meta(tree, change)
  found = datasets.load(f"meta_json:{tree.root}", "test")
  assert found.digests() == want
  assert any(
    "without an img_path were left out" in note for note in found.notes
  )
  moved = rewrite(tree.root, "x").startswith(("/home", "D:"))
  assert moved == any("is taken for" in note for note in found.notes)


def test_links_do_not_lead_out_of_the_root(tree, tmp_path):
  outside = tmp_path / "outside.png"
  outside.write_bytes(b"")
  (tree.root / "long/link.png").symlink_to(outside)
  write_meta(tree, change_entry("img_path", "long/link.png"))
  with pytest.raises(InputError, match="link.png is a link out of"):
    datasets.load(f"meta_json:{tree.root}", "test")


@pytest.mark.parametrize(
  "text", ("[" * 100_000, '{"test": {"a": [' + "[" * 10**5)
)
def test_deeply_nested_meta_json_is_refused(tmp_path, text):
  (tmp_path / "meta.json").write_text(text)
  with pytest.raises(
    InputError, match="meta.json cannot be read: it is nested"
  ):
    datasets.load(f"meta_json:{tmp_path}", "test")


def test_a_path_that_is_too_long_is_refused(tree):
  write_meta(tree, change_entry("img_path", "x" * 5000))
  with pytest.raises(InputError, match="File name too long"):
    datasets.load(f"meta_json:{tree.root}", "test")


def test_a_run_is_not_resumed_on_other_images(workable, tmp_path):
  from cops_jax import training

  tree, config = workable
  workdir = tmp_path / "run"
  config.train.num_epochs = 1
  training.train(config, workdir)
  training.train(config, workdir)
  dent = tree.root / "nut/test/dent"
  for folder in (dent, tree.root / "nut/ground_truth/dent"):
    shutil.copy(folder / "1.png", folder / "9.png")
  expected = (
    r"other images: 1 added \(nut/test/dent/9.png\).*--allow_other_data"
  )
  with pytest.raises(InputError, match=expected):
    training.train(config, workdir)
  training.train(config, workdir, allow_other_data=True)
