"""Lists of images in a meta.json."""

import pytest

from cops_jax import datasets
from cops_jax.errors import InputError
from helpers.listings import check_examples, write_meta


def test_a_meta_json_is_read(tree):
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
    (
      lambda splits: splits.update(test=[1]),
      "an object with a list for each category",
    ),
  ),
)
def test_a_bad_meta_json_is_refused(tree, change, expected):
  write_meta(tree, change)
  with pytest.raises(InputError, match=expected):
    datasets.load(f"meta_json:{tree.root}", "test")


def test_a_meta_json_that_lacks_some_masks_is_refused(tree):
  tree.image("long/test/bent/2.jpg", "test", "long", "bent")
  write_meta(tree)
  with pytest.raises(InputError, match="1 of 2 anomalous images have no"):
    datasets.load(f"meta_json:{tree.root}", "test")


@pytest.mark.parametrize("text", ('{"test": ', "\x00", "[]", "[" * 100_000))
def test_an_unreadable_meta_json_is_refused(tree, text):
  (tree.root / "meta.json").write_text(text)
  with pytest.raises(InputError, match="meta.json"):
    datasets.load(f"meta_json:{tree.root}", "test")
  (tree.root / "meta.json").unlink()
  with pytest.raises(InputError, match="meta.json cannot be read"):
    datasets.load(f"meta_json:{tree.root}", "test")


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
def test_paths_are_read_in_the_forms_that_scripts_write(tree, rewrite):
  def change(splits):
    for categories in splits.values():
      for entries in categories.values():
        for row in entries:
          for field in ("img_path", "mask_path"):
            if row[field]:
              row[field] = rewrite(tree.root, row[field])
        entries.append({"img_path": "", "mask_path": "", "anomaly": 0})

  write_meta(tree)
  want = datasets.load(f"meta_json:{tree.root}", "test").fingerprint()
  write_meta(tree, change)
  found = datasets.load(f"meta_json:{tree.root}", "test")
  assert found.fingerprint() == want
  assert any("without an img_path skipped: " in note for note in found.notes)
  moved = rewrite(tree.root, "x").startswith(("/home", "D:"))
  assert moved == any("is replaced by" in note for note in found.notes)
