"""Writes lists of images, and checks examples against a tree."""

import json

from cops_jax import datasets
from cops_jax.datasets.schema import Examples
from helpers.original_layouts import Tree


class Made(list):
  """Examples that a test created."""

  categories_and_labels = Examples.categories_and_labels


def check_examples(tree, name, split="test"):
  examples = datasets.load(name, split)
  own_name = "screws" if name.startswith("folder") else "screws-meta_json"
  assert examples.name == own_name
  expected = {p: row for p, row in tree.expected.items() if row.split == split}
  assert {example["path"] for example in examples} == expected.keys()
  assert examples.categories_and_labels() == [
    (row.category, row.label)
    for row in (expected[example["path"]] for example in examples)
  ]
  for example in examples:
    row = expected[example["path"]]
    assert example["image"] == tree.root / example["path"]
    assert example["id"] == example["path"]
    assert example["dataset"] == own_name
    assert example["category"] == row.category
    assert example["anomaly_kind"] == row.anomaly_kind
    assert example["label"] == row.label
    assert example["has_mask"] == (row.category == "long")
    if row.mask:
      assert example["mask"] == tree.root / row.mask
    else:
      assert isinstance(example["mask"], bytes)


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


def plates(root):
  """Writes a tree of a normal image and an anomalous one with a mask."""
  tree = Tree(root)
  tree.image("nut/test/good/0.png", "test", "nut")
  tree.image("nut/test/dent/1.png", "test", "nut", "dent")
  tree.mask("nut/ground_truth/dent/1.png")
  return tree
