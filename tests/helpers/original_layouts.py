"""Tiny trees in the exact layouts of the thirteen data sets, with odd files."""

import csv
import dataclasses
import pathlib

import numpy as np
from PIL import Image

_RNG_SEED = 0


@dataclasses.dataclass(frozen=True)
class Expected:
  """What the data set must hold for one image file."""

  split: str
  category: str
  anomaly_kind: str
  mask: str | None = None

  @property
  def label(self):
    return int(self.anomaly_kind != "good")


class Tree:
  """A data set's folder; `expected` goes by path relative to it."""

  def __init__(self, root):
    self.root = pathlib.Path(root)
    self.expected = {}
    self._rng = np.random.default_rng(_RNG_SEED)

  def image(self, path, split, category, kind="good", mode="RGB", mask=None):
    """Writes an image file of random pixels and notes what is expected."""
    pixels = self._rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if mode == "I;16":
      wide = self._rng.integers(0, 2**16, (9, 11), dtype=np.uint16)
      image = Image.fromarray(wide)
    else:
      image = image.convert(mode)
    self._save(path, image)
    self.expected[path] = Expected(split, category, kind, mask)

  def mask(self, path, size=(11, 9), value=255, mode="L"):
    mask = Image.new("L", size)
    mask.paste(value, (2, 1, 6, 5))
    self._save(path, mask.convert(mode))

  def junk(self, *folders):
    """What macOS and Windows leave behind."""
    for folder in folders:
      for name in ("._000.png", ".DS_Store", "Thumbs.db"):
        (self.root / folder / name).write_bytes(b"not an image")

  def _save(self, path, image):
    target = self.root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    image.save(target)


def _mvtec_like(tree, categories):
  modes = ("RGB", "L", "P", "RGBA", "I;16", "1")
  for index, category in enumerate(categories):
    mode = modes[index % len(modes)]
    tree.image(f"{category}/train/good/000.png", "train", category)
    tree.image(f"{category}/test/good/000.png", "test", category, mode=mode)
    for kind in ("crack", "hole"):
      for number in range(2):
        image = f"{category}/test/{kind}/00{number}.PNG"
        mask = f"{category}/ground_truth/{kind}/00{number}_mask.png"
        tree.image(image, "test", category, kind, mode, mask)
        # The second has another size than its image.
        tree.mask(mask, size=(11, 9) if number else (22, 18))
    tree.junk(f"{category}/test/good", f"{category}/ground_truth/crack")
  (tree.root / "readme.txt").write_text("no folder of images")


MVTEC = (
  *("carpet", "grid", "leather", "tile", "wood", "bottle", "cable", "capsule"),
  *("hazelnut", "metal_nut", "pill", "screw", "toothbrush", "transistor"),
  "zipper",
)
VISA = (
  *("candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1"),
  *("macaroni2", "pcb1", "pcb2", "pcb3", "pcb4", "pipe_fryum"),
)
MPDD = (
  *("bracket_black", "bracket_brown", "bracket_white", "connector"),
  *("metal_plate", "tubes"),
)
DTD = (
  *("Woven_001", "Woven_127", "Woven_104", "Stratified_154", "Blotchy_099"),
  *("Woven_068", "Woven_125", "Marbled_078", "Perforated_037", "Mesh_114"),
  *("Fibrous_183", "Matted_069"),
)


def _visa(tree):
  rows = []
  for category in VISA:
    for kind, label, split in (
      ("Normal", "normal", "train"),
      ("Normal", "normal", "test"),
      ("Anomaly", "anomaly", "test"),
    ):
      image = f"{category}/Data/Images/{kind}/{split}.JPG"
      mask = ""
      if label == "anomaly":
        mask = f"{category}/Data/Masks/Anomaly/{split}.png"
        tree.mask(mask, value=3)  # A class index.
      expected_kind = "anomaly" if mask else "good"
      tree.image(image, split, category, expected_kind, mask=mask or None)
      rows.append((category, split, label, image, mask))
  write_table(tree.root, rows)


def write_table(
  root, rows, header=("object", "split", "label", "image", "mask")
):
  """VisA's split_csv/1cls.csv."""
  table = root / "split_csv" / "1cls.csv"
  table.parent.mkdir(parents=True, exist_ok=True)
  with table.open("w", newline="") as file:
    csv.writer(file).writerows([header, *rows])


def _btad(tree):
  for category, suffix in (("01", "bmp"), ("02", "png"), ("03", "bmp")):
    tree.image(f"{category}/train/ok/0000.{suffix}", "train", category)
    tree.image(f"{category}/test/ok/0000.{suffix}", "test", category)
    for number in range(2):
      image = f"{category}/test/ko/000{number}.{suffix}"
      mask_suffix = "png" if category == "01" else suffix
      mask = f"{category}/ground_truth/ko/000{number}.{mask_suffix}"
      tree.image(image, "test", category, "ko", mask=mask)
      tree.mask(mask)


def _head_ct(tree):
  for kind in ("good", "hemorrhage"):
    for number in range(2):
      path = f"brain/test/{kind}/00{number}.png"
      tree.image(path, "test", "brain", kind, mode="L")


def _yes_no(tree, prefix):
  # The same names in both folders.
  for folder, kind in (("no", "good"), ("yes", "yes")):
    for name in ("Y1.jpg", "2 copy.JPG", "3.jpeg"):
      tree.image(f"{prefix}{folder}/{name}", "test", "brain", kind)
  (tree.root / "pred").mkdir(exist_ok=True)
  tree.junk("pred")


def _isic(tree):
  for number in (3, 12):
    mask = (
      "skin/ISBI2016_ISIC_Part1_Test_GroundTruth/"
      f"ISIC_00000{number:02}_Segmentation.png"
    )
    path = f"skin/test/bad/ISIC_00000{number:02}.jpg"
    tree.image(path, "test", "skin", "bad", mask=mask)
    tree.mask(mask)


def _images_and_masks(tree, image_name, mask_name):
  for number in (1, 2, 10):
    image = f"images/{image_name.format(number)}"
    mask = f"masks/{mask_name.format(number)}"
    tree.image(image, "test", "colon", "anomaly", mask=mask)
    tree.mask(mask)
  tree.junk("images", "masks")


def _endo(tree):
  tree.image("good/000.jpg", "test", "colon")
  for kind, name in (("polyps", "a"), ("ulcers", "b")):
    mask = f"masks/{name.upper()}_GT.png"
    tree.image(f"{kind}/{name}.jpg", "test", "colon", kind, mask=mask)
    tree.mask(mask)
  (tree.root / "empty").mkdir()


_WRITERS = {
  "mvtec_ad": lambda tree: _mvtec_like(tree, MVTEC),
  "visa": _visa,
  "btad": _btad,
  "mpdd": lambda tree: _mvtec_like(tree, MPDD),
  "dtd_synthetic": lambda tree: _mvtec_like(tree, DTD),
  "head_ct": _head_ct,
  "brain_mri": lambda tree: _yes_no(tree, "brain_tumor_dataset/"),
  "br35h": lambda tree: _yes_no(tree, ""),
  "isic": _isic,
  # Names that pair only by order.
  "cvc_colondb": lambda tree: _images_and_masks(tree, "{}.png", "p{:03}.png"),
  "cvc_clinicdb": lambda tree: _images_and_masks(tree, "{}.tif", "{}.tif"),
  "kvasir": lambda tree: _images_and_masks(tree, "k{}.jpg", "k{}.jpg"),
  "endo": _endo,
}

NAMES = tuple(_WRITERS)
WITHOUT_MASKS = ("head_ct", "brain_mri", "br35h")


def write_tree(name, manual_dir):
  """Writes a data set's original files below a manual directory."""
  tree = Tree(pathlib.Path(manual_dir) / name)
  _WRITERS[name](tree)
  return tree


def write_parts(root):
  """A folder in MVTec's layout, small enough to train on: six images."""
  tree = Tree(root)
  for number in range(3):
    tree.image(f"nut/test/good/{number}.png", "test", "nut")
    mask = f"nut/ground_truth/dent/{number}.png"
    tree.image(f"nut/test/dent/{number}.png", "test", "nut", "dent", mask=mask)
    tree.mask(mask)
  return tree
