"""Writes tiny data sets in the published layouts, with stray files."""

import csv
import dataclasses
import json
import pathlib

import numpy as np
from PIL import Image

from cops_jax.datasets.further import PUBLISHED

_RNG_SEED = 0


@dataclasses.dataclass(frozen=True)
class Expected:
  """The expected example of one image file."""

  split: str
  category: str
  anomaly_kind: str
  mask: str | None = None

  @property
  def label(self):
    return int(self.anomaly_kind != "good")


class Tree:
  """The folder of a data set.

  Attributes:
    expected: expected examples, by path relative to the folder.
  """

  def __init__(self, root):
    self.root = pathlib.Path(root)
    self.expected = {}
    self._rng = np.random.default_rng(_RNG_SEED)

  def image(self, path, split, category, kind="good", mode="RGB", mask=None):
    """Writes an image file of random pixels and records its example."""
    pixels = self._rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if mode == "I;16":
      wide = self._rng.integers(0, 2**16, (9, 11), dtype=np.uint16)
      image = Image.fromarray(wide)
    else:
      image = image.convert(mode)
    self._save(path, image)
    self.expected[path] = Expected(split, category, kind, mask)

  def mask(self, path, size=(11, 9), value=255, mode="L", box=(2, 1, 6, 5)):
    mask = Image.new("L", size)
    mask.paste(value, box)
    self._save(path, mask.convert(mode))

  def junk(self, *folders):
    """Writes files that macOS and Windows leave behind."""
    for folder in folders:
      for name in ("._000.png", ".DS_Store", "Thumbs.db"):
        (self.root / folder / name).write_bytes(b"not an image")

  def _save(self, path, image):
    target = self.root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    image.save(target)


def _mvtec_like(tree):
  modes = ("RGB", "L", "P", "RGBA", "I;16", "1")
  for index, category in enumerate(PUBLISHED[tree.root.name].categories):
    mode = modes[index % len(modes)]
    tree.image(f"{category}/train/good/000.png", "train", category)
    tree.image(f"{category}/test/good/000.png", "test", category, mode=mode)
    for kind in ("crack", "hole"):
      for number in range(2):
        image = f"{category}/test/{kind}/00{number}.PNG"
        mask = f"{category}/ground_truth/{kind}/00{number}_mask.png"
        tree.image(image, "test", category, kind, mode, mask)
        # The second mask differs in size from its image.
        tree.mask(mask, size=(11, 9) if number else (22, 18))
    tree.junk(f"{category}/test/good", f"{category}/ground_truth/crack")
  (tree.root / "readme.txt").write_text("no folder of images")


def _visa(tree):
  rows = []
  for category in PUBLISHED["visa"].categories:
    for kind, label, split in (
      ("Normal", "normal", "train"),
      ("Normal", "normal", "test"),
      ("Anomaly", "anomaly", "test"),
    ):
      image = f"{category}/Data/Images/{kind}/{split}.JPG"
      mask = ""
      if label == "anomaly":
        mask = f"{category}/Data/Masks/Anomaly/{split}.png"
        tree.mask(mask, value=3)  # The value is a class index.
      expected_kind = "anomaly" if mask else "good"
      tree.image(image, split, category, expected_kind, mask=mask or None)
      rows.append((category, split, label, image, mask))
  write_table(tree.root, rows)


def write_table(
  root, rows, header=("object", "split", "label", "image", "mask")
):
  """Writes VisA's split_csv/1cls.csv."""
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
  # Both folders have the same file names.
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


def _mvtec_ad_2(tree):
  for category in PUBLISHED["mvtec_ad_2"].categories:
    top = f"{category}/test_public"
    mask = f"{top}/ground_truth/bad/001_regular_mask.png"
    tree.image(f"{category}/train/good/000_regular.png", "train", category)
    tree.image(f"{top}/good/000_regular.png", "test", category)
    tree.image(f"{top}/bad/001_regular.png", "test", category, "bad", mask=mask)
    tree.mask(mask)
    for other in ("validation/good", "test_private", "test_private_mixed"):
      tree.mask(f"{category}/{other}/000_mixed.png")


def _mvtec_loco(tree):
  """Writes two masks for each image, which differ in value and place."""
  for category in PUBLISHED["mvtec_loco"].categories:
    tree.image(f"{category}/train/good/000.png", "train", category)
    tree.image(f"{category}/test/good/000.png", "test", category)
    for kind in ("logical_anomalies", "structural_anomalies"):
      folder = f"{category}/ground_truth/{kind}/000"
      path = f"{category}/test/{kind}/000.png"
      tree.image(path, "test", category, kind, mask=folder)
      tree.mask(f"{folder}/000.png", value=254)
      tree.mask(f"{folder}/001.png", value=7, box=(5, 3, 9, 8))


def _real_iad(tree):
  (tree.root / "realiad_jsons/realiad_jsons").mkdir(parents=True)
  for name in PUBLISHED["real_iad"].categories:
    lists = {"meta": {"normal_class": "OK"}, "train": [], "test": []}
    for split, stem, kind in (
      ("train", f"OK/S0001/{name}_0001_OK_C1", "OK"),
      ("test", f"OK/S0002/{name}_0002_OK_C1", "OK"),
      ("test", f"NG/HS/S0003/{name}__0003_NG_HS_C1", "HS"),
      # The defect is out of view.
      ("test", f"NG/HS/S0003/{name}__0003_NG_HS_C2", "OK"),
    ):
      path, mask = f"realiad_1024/{name}/{stem}.jpg", None
      if kind != "OK":
        mask = path.replace("jpg", "png")
        tree.mask(mask)
      tree.image(path, split, name, kind if mask else "good", mask=mask)
      entry = {"image_path": f"{stem}.jpg", "anomaly_class": kind}
      lists[split].append(entry | {"mask_path": mask and f"{stem}.png"})
    path = tree.root / "realiad_jsons/realiad_jsons" / f"{name}.json"
    path.write_text(json.dumps(lists))


def _elpv(tree):
  lines = []
  for number, chance in enumerate(("0.0", "1.0", "0.3333333333333333", "0.0")):
    path = f"images/cell000{number}.png"
    kind = "anomaly" if chance == "1.0" else "good"
    tree.image(path, "test", "solar_cell", kind, mode="L")
    if chance.startswith("0.3"):
      del tree.expected[path]
    lines.append(f"{path}  {chance}  mono\n")
  (tree.root / "labels.csv").write_text("".join(lines))


_WRITERS = {
  "mvtec_ad": _mvtec_like,
  "visa": _visa,
  "btad": _btad,
  "mpdd": _mvtec_like,
  "dtd_synthetic": _mvtec_like,
  "head_ct": _head_ct,
  "brain_mri": lambda tree: _yes_no(tree, "brain_tumor_dataset/"),
  "br35h": lambda tree: _yes_no(tree, ""),
  "isic": _isic,
  # These names pair images and masks only by their order.
  "cvc_colondb": lambda tree: _images_and_masks(tree, "{}.png", "p{:03}.png"),
  "cvc_clinicdb": lambda tree: _images_and_masks(tree, "{}.tif", "{}.tif"),
  "kvasir": lambda tree: _images_and_masks(tree, "k{}.jpg", "k{}.jpg"),
  "endo": _endo,
  "mvtec_ad_2": _mvtec_ad_2,
  "mvtec_loco": _mvtec_loco,
  "real_iad": _real_iad,
  "elpv": _elpv,
}

NAMES = tuple(_WRITERS)
WITHOUT_MASKS = ("head_ct", "brain_mri", "br35h", "elpv")


def write_tree(name, manual_dir):
  """Writes a data set's original files below `manual_dir`."""
  tree = Tree(pathlib.Path(manual_dir) / name)
  _WRITERS[name](tree)
  return tree


def write_files(root, paths):
  """Writes tiny images to paths of images, and text to all other paths."""
  for path in paths:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    if path.endswith((".png", ".jpg", ".tif")):
      Image.new("L", (2, 2)).save(root / path)
    else:
      (root / path).write_text("text")
  return [root / path for path in paths]


def write_parts(root):
  """Writes six images in MVTec's layout, few enough to train on."""
  tree = Tree(root)
  for number in range(3):
    tree.image(f"nut/test/good/{number}.png", "test", "nut")
    mask = f"nut/ground_truth/dent/{number}.png"
    tree.image(f"nut/test/dent/{number}.png", "test", "nut", "dent", mask=mask)
    tree.mask(mask)
  return tree
