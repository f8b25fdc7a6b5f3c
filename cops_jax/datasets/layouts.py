"""Data sets' folders as their publishers lay them out."""

from __future__ import annotations

import csv
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

from cops_jax.errors import InputError

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_MASK_ENDINGS = ("_mask", "_gt")
_VISA_COLUMNS = ("object", "split", "label", "image", "mask")

NORMAL_KIND = "good"


@dataclasses.dataclass(frozen=True)
class Record:
  """One image of a data set.

  Attributes:
    split: "train" or "test".
    category: of the product.
    anomaly_kind: the kind of anomaly, or "good".
    image: the file.
    mask: its mask's file; None for a normal image.
  """

  split: str
  category: str
  anomaly_kind: str
  image: pathlib.Path
  mask: pathlib.Path | None


def read_mvtec(
  root: pathlib.Path, categories: Sequence[str]
) -> Iterator[Record]:
  """Reads CATEGORY/{train,test}/KIND/* and CATEGORY/ground_truth/KIND/*.

  Raises:
    InputError: a category has no test images, or masks do not pair.
  """
  for category in categories:
    found = 0
    for split in ("train", "test"):
      for folder in _folders(root / category / split):
        images, masks = _images(folder), None
        if folder.name != NORMAL_KIND:
          masks = pair_masks(
            images, root / category / "ground_truth" / folder.name
          )
        for image in images:
          found += split == "test"
          mask = masks[image] if masks else None
          yield Record(split, category, folder.name, image, mask)
    if not found:
      raise InputError(
        f"{root / category / 'test'} has no images; expected"
        f" {NORMAL_KIND}/*.png in it and a folder for each kind of anomaly"
      )


def read_visa(
  root: pathlib.Path, categories: Sequence[str]
) -> Iterator[Record]:
  """Reads split_csv/1cls.csv, whose paths are relative to the root.

  Raises:
    InputError: the table, a column, a category or a file is missing.
  """
  table = root / "split_csv" / "1cls.csv"
  if not table.is_file():
    raise InputError(f"{table} does not exist; VisA's download holds it")
  with table.open(newline="", encoding="utf-8") as file:
    reader = csv.DictReader(file)
    missing = set(_VISA_COLUMNS) - set(reader.fieldnames or ())
    if missing:
      raise InputError(
        f"{table} lacks the columns {', '.join(sorted(missing))}"
      )
    rows = list(reader)
  absent = set(categories) - {row["object"] for row in rows}
  if absent:
    raise InputError(f"{table} has no rows for {', '.join(sorted(absent))}")
  for row in rows:
    is_normal = row["label"] == "normal"
    image = root / row["image"]
    mask = None if is_normal else root / row["mask"]
    for path in (image, mask):
      if path is not None and not path.is_file():
        raise InputError(f"{path} does not exist, but {table} lists it")
    kind = NORMAL_KIND if is_normal else "anomaly"
    yield Record(row["split"], row["object"], kind, image, mask)


def pair_masks(
  images: Sequence[pathlib.Path], folder: pathlib.Path
) -> dict[pathlib.Path, pathlib.Path]:
  """Each image's mask: by stem, else by sorted order where the counts agree.

  Stems are compared without case and without an ending such as "_mask".

  Raises:
    InputError: neither is possible; names the folder and both counts.
  """
  masks = _images(folder)
  by_stem = {_stem(mask): mask for mask in masks}
  if all(_stem(image) in by_stem for image in images):
    return {image: by_stem[_stem(image)] for image in images}
  if len(images) == len(masks):
    return dict(zip(images, masks, strict=True))
  raise InputError(
    f"{folder} holds {len(masks)} masks for the {len(images)} images of"
    f" {images[0].parent}, and their names do not pair"
  )


def _stem(path):
  stem = path.stem.lower()
  for ending in _MASK_ENDINGS:
    stem = stem.removesuffix(ending)
  return stem


def _folders(folder):
  if not folder.is_dir():
    return []
  return sorted(path for path in folder.iterdir() if path.is_dir())


def _images(folder):
  """Image files by name; macOS's ._* doubles and other files are none."""
  if not folder.is_dir():
    return []
  return sorted(
    path
    for path in folder.iterdir()
    if path.suffix.lower() in _IMAGE_SUFFIXES and not path.name.startswith(".")
  )
