"""Masks are matched to images, and published layouts are read."""

import re

import pytest

from cops_jax.datasets import SPECIFICATIONS, layouts
from helpers.original_layouts import write_files


def pair(tmp_path, images, masks):
  """Returns masks by image, both as file names, and the listing."""
  listing = layouts.Listing()
  folders = tmp_path / "images", tmp_path / "masks"
  files = write_files(folders[0], images)
  write_files(folders[1], masks)
  images = dict.fromkeys(files, folders[0])
  pairs = layouts.pair_masks(images, folders[1], listing)
  found = {}
  for image, (mask,) in pairs.items():
    name = image.relative_to(folders[0]).as_posix()
    found[name] = mask.relative_to(folders[1]).as_posix()
  return found, listing


@pytest.mark.parametrize(
  "images, masks",
  (
    (("a.jpg", "b.jpg"), ("a.png", "b.png")),
    (("000.png", "001.png"), ("000_mask.png", "001_mask.png")),
    (("A.JPG", "b.jpg"), ("a_GT.png", "B_gt.PNG")),
    (("I_1.jpg", "I_2.jpg"), ("I_1_Segmentation.png", "I_2_segmentation.png")),
    (("1.png", "2.png"), ("1-groundtruth.png", "2-ground_truth.png")),
    # The last mask has no image and is noted.
    (("a.png",), ("a.png", "b.png")),
    # A folder for each image can contain several masks.
    (("a.png", "b.png"), ("a/000.png", "b/000.png")),
    (("s1/a.png", "s2/a.png"), ("s1/a_mask.png", "s2/a_mask.png")),
    # No names match: masks are assigned in order, numbers by their value.
    (("1.png", "2.png", "10.png"), ("p001.png", "p002.png", "p010.png")),
  ),
)
def test_masks_are_matched_to_images(tmp_path, images, masks):
  pairs, listing = pair(tmp_path, images, masks)
  assert pairs == dict(zip(images, masks, strict=False))
  assert not listing.problems
  noted = any("b.png belongs to no image" in o for o in listing.oddities)
  assert noted == (len(masks) > len(images))
  by_order = [line for line in listing.oddities if "sorted order" in line]
  assert bool(by_order) == masks[0].startswith("p")


@pytest.mark.parametrize(
  "images, masks, reason",
  (
    (
      ["a.png", "b.png"],
      ["x.png"],
      "1 mask, 2 images.: the names do not match",
    ),
    (
      ["03.png", "04.png"],
      ["m_02.png", "m_03.png"],
      "m_02.png would belong to 03",
    ),
    (["a.png", "b.png"], ["a.png"], "named after b.png"),
    # One shifted name must not shift all pairs by order.
    (["1.png", "2.png", "3.png"], ["2.png", "3.png", "4.png"], "after 1.png"),
    # Two masks match an image.
    (
      ["a.png", "b.png"],
      ["a.png", "a_mask.png", "b.png"],
      "names do not match",
    ),
  ),
)
def test_masks_that_do_not_match_are_a_problem(tmp_path, images, masks, reason):
  pairs, listing = pair(tmp_path, images, masks)
  assert not pairs
  (problem,) = listing.problems
  assert re.search(reason, problem)


@pytest.mark.parametrize(
  "name, paths, anomalous",
  (
    ("brain_mri", ("Yes/1.jpg", "No/2.jpg"), ["Yes/1.jpg"]),
    (
      "brain_mri",
      ("brain/test/good/1.jpg", "brain/test/anomaly/2.jpg"),
      ["brain/test/anomaly/2.jpg"],
    ),
    (
      "br35h",
      ("archive/yes/1.jpg", "archive/no/2.jpg", "archive/pred/3.jpg"),
      ["yes/1.jpg"],
    ),
    (
      "isic",
      (
        "ISBI2016_ISIC_Part1_Test_Data/I_1.jpg",
        "ISBI2016_ISIC_Part1_Test_GroundTruth/I_1_Segmentation.png",
      ),
      ["ISBI2016_ISIC_Part1_Test_Data/I_1.jpg"],
    ),
    (
      "isic",
      ("isic/test/bad/1.jpg", "isic/ground_truth/bad/1.png"),
      ["isic/test/bad/1.jpg"],
    ),
    (
      "kvasir",
      ("Kvasir-SEG/images/a.jpg", "Kvasir-SEG/masks/a.jpg"),
      ["images/a.jpg"],
    ),
    (
      "cvc_clinicdb",
      ("Original/1.tif", "Ground Truth/1.tif"),
      ["Original/1.tif"],
    ),
    ("cvc_colondb", ("images/1.png", "masks/p1.png"), ["images/1.png"]),
    (
      "endo",
      (
        "Endo/images/1.jpg",
        "Endo/masks/1.png",
        "Endo/annotated/1.jpg",
        "Endo/thumbnails/1.jpg",
        "__MACOSX/images/1.jpg",
      ),
      ["images/1.jpg"],
    ),
    (
      "endo",
      ("endo/test/defect/1.jpg", "endo/ground_truth/defect/1.png"),
      ["endo/test/defect/1.jpg"],
    ),
    (
      "head_ct",
      ("headct/test/good/1.png", "headct/test/defect/2.png"),
      ["headct/test/defect/2.png"],
    ),
  ),
)
def test_common_copies_of_data_sets_are_read(tmp_path, name, paths, anomalous):
  write_files(tmp_path, paths)
  row = SPECIFICATIONS[name]
  listing = row.read(tmp_path, row.categories)
  assert not listing.problems
  root = listing.root or tmp_path
  found = [
    record.image.relative_to(root).as_posix()
    for record in listing.images
    if record.is_anomaly
  ]
  assert found == anomalous
  masks = [path for path in paths if "asks" in path or "round" in path]
  assert all(
    bool(record.masks) == bool(masks)
    for record in listing.images
    if record.is_anomaly
  )
  assert bool(listing.root) == (len(anomalous[0]) < min(map(len, paths)))


def test_converted_industrial_data_sets_are_read(tmp_path):
  for name, folder, bad in (
    ("visa", "visa_pytorch", "bad"),
    ("btad", "BTech_Dataset_transformed", "ko"),
  ):
    row = SPECIFICATIONS[name]
    normal = "good" if name == "visa" else "ok"
    for category in row.categories:
      top = f"{folder}/{category}"
      write_files(
        tmp_path / name,
        [f"{top}/test/{normal}/0.png", f"{top}/test/{bad}/1.png"]
        + [f"{top}/ground_truth/{bad}/1.png", f"{top}/train/{normal}/2.png"],
      )
    listing = row.read(tmp_path / name, row.categories)
    assert not listing.problems and listing.root == tmp_path / name / folder
    assert len(listing.images) == 3 * len(row.categories)


def test_head_ct_is_read_as_on_kaggle(tmp_path):
  write_files(tmp_path, [f"head_ct/00{number}.png" for number in range(3)])
  table = tmp_path / "labels.csv"
  table.write_text("id, hemorrhage\n0,1\n1,0\n2,1\n")
  row = SPECIFICATIONS["head_ct"]
  listing = row.read(tmp_path, row.categories)
  assert not listing.problems
  kinds = {record.image.name: record.is_anomaly for record in listing.images}
  assert kinds == {"000.png": True, "001.png": False, "002.png": True}
  table.write_text("id, hemorrhage\n0,1\n1,0\n2,1\n7,1\n")
  (problem,) = row.read(tmp_path, row.categories).problems
  assert "head_ct/007.png does not exist" in problem
