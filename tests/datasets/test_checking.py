"""The check of a data set reports known faults."""

import numpy as np
import pytest
from PIL import Image

from cops_jax import datasets
from cops_jax.datasets import checking
from helpers.original_layouts import NAMES, Tree, write_tree


def check(tree):
  root = tree.root.parent
  return checking.check(tree.root.name, str(root / "prepared"), str(root))


@pytest.mark.parametrize("name", NAMES)
def test_sound_trees_have_no_problems(name, tmp_path):
  tree = write_tree(name, tmp_path)
  result = check(tree)
  assert result.problems == []
  for row in tree.expected.values():
    place = (row.category, row.split)
    assert result.counts[(*place, "anomalous" if row.label else "normal")]
  numbers = {kind: 0 for kind in ("normal", "anomalous", "masks")}
  for (_, _, kind), number in result.counts.items():
    numbers[kind] += number
  labels = [row.label for row in tree.expected.values()]
  masks = [row.mask for row in tree.expected.values() if row.mask]
  assert numbers == {
    "normal": labels.count(0),
    "anomalous": labels.count(1),
    "masks": len(masks),
  }


def test_counts_are_compared_with_the_published_ones(tmp_path):
  result = check(write_tree("btad", tmp_path))
  assert result.warnings == [
    "9 images in the test split, 732 fewer than the 741 of the published data"
    " set",
    "6 anomalous images in the test split, 284 fewer than the 290 of the"
    " published data set",
  ]
  text = str(result)
  assert f"btad: original files in {tmp_path / 'btad'}" in text
  assert ["total", "test", "3", "6", "6"] in [
    line.split() for line in text.splitlines()
  ]
  assert "image files: 8 BMP RGB, 4 PNG RGB" in text


def test_faulty_files_are_listed(tmp_path):
  tree = Tree(tmp_path / "parts")
  for number in range(5):
    mask = f"nut/ground_truth/dent/{number}.png"
    tree.image(f"nut/test/dent/{number}.png", "test", "nut", "dent", mask=mask)
    tree.mask(mask, size=(7, 7) if number == 3 else (11, 9))
  tree.image("nut/test/good/wide.png", "test", "nut", mode="I;16")
  deep = Image.fromarray(np.full((9, 11), 4000, np.uint16))
  deep.save(tree.root / "nut/test/good/wide.png")
  Image.new("L", (11, 9)).save(tree.root / "nut/ground_truth/dent/4.png")
  for path in ("test/dent/1.png", "ground_truth/dent/2.png"):
    file = tree.root / "nut" / path
    file.write_bytes(file.read_bytes()[:50])
  (tree.root / "nut/test/good/notes.txt").touch()
  result = checking.check(f"folder:{tree.root}")
  assert [problem.partition(" cannot")[0] for problem in result.problems] == [
    "nut/test/dent/1.png: its image",
    "nut/test/dent/2.png: its mask",
  ]
  for expected in (
    "1 image: the mask and the image differ in size (nut/test/dent/3.png:"
    " 7 x 7 pixels, not 11 x 9)",
    "1 image: the mask is empty, but the image is anomalous"
    " (nut/test/dent/4.png: 11 x 9 pixels)",
    "1 image: the values use fewer than 16 bits, so the image may be too dark;"
    " set input.bits_per_channel to the bits of the camera"
    " (nut/test/good/wide.png: 12 bits)",
    f"{tree.root}/nut/test/good/notes.txt is not an image file and is skipped",
  ):
    assert expected in result.notes
  assert len(result.notes) == 4
  assert result.formats == {"PNG RGB": 4, "PNG I;16": 1, "unreadable": 1}
  assert "problems: 2\n  nut/test/dent/1.png" in str(result)


def test_a_prepared_copy_is_checked_without_original_files(tmp_path):
  tree = write_tree("isic", tmp_path)
  before = check(tree)
  datasets.load("isic", "test", str(tmp_path / "prepared"), str(tmp_path))
  tree.root.rename(tmp_path / "elsewhere")
  after = check(tree)
  assert after.source.startswith("prepared copy in ")
  assert (after.counts, after.formats) == (before.counts, before.formats)
