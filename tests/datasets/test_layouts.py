"""Masks find their images."""

import numpy as np
import pytest
from PIL import Image

from cops_jax.datasets import layouts


def write_files(folder, names):
  folder.mkdir()
  for name in names:
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(folder / name)
  return [folder / name for name in names]


def pair(tmp_path, images, masks):
  """Pairs by file name, and what was noted."""
  listing = layouts.Listing()
  pairs = layouts.pair_masks(
    write_files(tmp_path / "images", images),
    (tmp_path / "masks", write_files(tmp_path / "masks", masks))[0],
    listing,
  )
  return {a.name: b.name for a, b in pairs.items()}, listing


@pytest.mark.parametrize(
  "images, masks",
  (
    (("a.jpg", "b.jpg"), ("a.png", "b.png")),
    (("000.png", "001.png"), ("000_mask.png", "001_mask.png")),
    (("A.JPG", "b.jpg"), ("a_GT.png", "B_gt.PNG")),
    (("I_1.jpg", "I_2.jpg"), ("I_1_Segmentation.png", "I_2_segmentation.png")),
    (("1.png", "2.png"), ("1-groundtruth.png", "2-ground_truth.png")),
    # No names in common: by order, numbers by their value.
    (("1.png", "2.png", "10.png"), ("p001.png", "p002.png", "p010.png")),
  ),
)
def test_pairs(tmp_path, images, masks):
  pairs, listing = pair(tmp_path, images, masks)
  assert pairs == dict(zip(images, masks, strict=True))
  assert not listing.problems
  by_order = [line for line in listing.oddities if "sorted order" in line]
  assert bool(by_order) == masks[0].startswith("p")


def test_surplus_masks_are_noted(tmp_path):
  pairs, listing = pair(tmp_path, ["a.png"], ["a.png", "b.png"])
  assert pairs == {"a.png": "a.png"} and not listing.problems
  (oddity,) = listing.oddities
  assert oddity.endswith("masks/b.png is the mask of no image")


@pytest.mark.parametrize(
  "images, masks, reason",
  (
    (["a.png", "b.png"], ["x.png"], "names do not pair"),
    (["a.png", "b.png"], ["a.png"], "b.png has none"),
    # One shifted name must not shift all pairs by order.
    (["1.png", "2.png", "3.png"], ["2.png", "3.png", "4.png"], "1.png has non"),
    # Two masks that could be an image's.
    (["a.png", "b.png"], ["a.png", "a_mask.png", "b.png"], "names do not pair"),
  ),
)
def test_masks_that_do_not_pair_are_a_problem(tmp_path, images, masks, reason):
  pairs, listing = pair(tmp_path, images, masks)
  assert not pairs
  (problem,) = listing.problems
  assert f"masks holds {len(masks)} masks for the {len(images)}" in problem
  assert reason in problem


def test_files_that_are_not_images_are_noted(tmp_path):
  listing = layouts.Listing()
  files = write_files(tmp_path / "x", ["b.png", "a.BMP", "C.Tif"])
  for name in ("._b.png", ".DS_Store", "Thumbs.db", "notes.txt"):
    (tmp_path / "x" / name).touch()
  assert sorted(layouts.list_images(tmp_path / "x", listing)) == sorted(files)
  (oddity,) = listing.oddities
  assert "notes.txt is not an image file" in oddity


def test_only_the_first_of_many_problems_are_shown():
  listing = layouts.Listing(problems=[f"problem {n}" for n in range(30)])
  with pytest.raises(ValueError) as error:
    listing.require_sound("x")
  assert "problem 9" in str(error.value)
  assert "problem 10" not in str(error.value)
  assert "and 20 more" in str(error.value)
