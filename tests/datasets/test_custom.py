"""Custom data: a folder in MVTec's layout, and meta.json lists."""

import json

import pytest

from cops_jax import datasets
from cops_jax.errors import InputError
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
