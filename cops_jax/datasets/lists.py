"""Readers of data sets with a list of images and labels."""

from __future__ import annotations

import collections
import csv
import functools
import json
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cops_jax.datasets.layouts import (
  NORMAL_KIND,
  SPLITS,
  ListedImage,
  Listing,
  list_folders,
  scan,
)

META_FILE = "meta.json"
REAL_IAD_LISTS = "realiad_jsons"
_REAL_IAD = ("realiad_1024", "realiad_512", "realiad_256", "realiad_raw")

# Entries by split and category; `read_meta_json` describes them.
Splits = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]


def read_meta_json(
  root: pathlib.Path, categories: Sequence[str] = ()
) -> Listing:
  """Reads a meta.json, the list of AnomalyCLIP, AdaCLIP and CoPS.

  It is {"train": {CATEGORY: [ENTRY, ...]}, "test": {...}}. An entry has
  img_path and mask_path, specie_name (kind of the anomaly) and anomaly (0 or
  1; images with a probability in between are skipped). Paths are relative to
  the root or absolute. An absolute path outside the root is replaced by its
  longest ending that is a file below the root. A category has masks for all
  anomalous images or, if each mask_path is empty, for none.

  Args:
    root: root folder of the data set.
    categories: required categories.
  """
  return read_table(root, categories, table=META_FILE, parse=json.loads)


def read_table(
  root: pathlib.Path,
  categories: Sequence[str],
  *,
  table: str | pathlib.Path,
  parse: Callable[[str], Splits],
) -> Listing:
  """Reads a list of images; the other arguments are those of `read_meta_json`.

  Args:
    table: path of the list below the root.
    parse: converts the text of the list to the contents of a meta.json.
  """
  listing = Listing()
  path = root / table
  try:
    splits = parse(path.read_text(encoding="utf-8-sig"))
  except KeyError as error:
    listing.problems.append(f"{path} lacks the column {error}")
    return listing
  except (
    *(OSError, ValueError, TypeError, IndexError),
    RecursionError,
  ) as error:
    listing.problems.append(f"{path} cannot be read: {error}")
    return listing
  if not isinstance(splits, dict) or not splits.get("test"):
    listing.problems.append(f'{path} has no "test" images')
    return listing
  for split, entries in splits.items():
    if split not in SPLITS:
      listing.oddities.append(f"{path}: the split {split!r} is not read")
    elif not isinstance(entries, dict):
      listing.problems.append(
        f"{path}: {split!r} must be an object with a list for each category"
      )
    else:
      for category, rows in entries.items():
        place = f"{path}, {split} {category}"
        _add_entries(root, split, category, rows, place, listing)
  _check_whole(listing, path, categories)
  return listing


def _check_whole(listing, path, categories):
  found = {image.category for image in listing.images if image.split == "test"}
  if absent := [name for name in categories if name not in found]:
    listing.problems.append(f"{path} has no test images of {', '.join(absent)}")
  counts = collections.Counter(record.image for record in listing.images)
  listing.problems += [
    f"{path} lists {image} {count} times"
    for image, count in counts.items()
    if count > 1
  ]


def parse_visa(text: str) -> Splits:
  """Parses VisA's table of object, split, label, image and mask."""
  splits = {}
  for row in csv.DictReader(text.splitlines()):
    entry = {
      "img_path": row["image"],
      "mask_path": row["mask"],
      "anomaly": {"normal": 0, "anomaly": 1}.get(row["label"]),
    }
    categories = splits.setdefault(row["split"], {})
    categories.setdefault(row["object"], []).append(entry)
  return splits


def parse_head_ct(text: str) -> Splits:
  """Parses HeadCT's table on Kaggle, of numbers of images and labels."""
  rows = list(csv.reader(text.splitlines()))[1:]
  entries = [
    {"img_path": f"head_ct/{int(row[0]):03}.png", "anomaly": int(row[1])}
    for row in rows
  ]
  return {"test": {"brain": entries}}


def parse_elpv(text: str) -> Splits:
  """Parses ELPV's table of paths of images and probabilities of a defect."""
  rows = [line.split() for line in text.splitlines()]
  entries = [{"img_path": row[0], "anomaly": float(row[1])} for row in rows]
  return {"test": {"solar_cell": entries}}


def read_real_iad(
  root: pathlib.Path, categories: Sequence[str] = ()
) -> Listing:
  """Reads Real-IAD's lists; the arguments are those of `read_meta_json`.

  realiad_jsons/CATEGORY.json, which can be one folder deeper, has the lists
  "train" and "test". Their entries have image_path and mask_path, relative to
  the category's folder in one of `_REAL_IAD`, and anomaly_class. The class OK
  means normal, also for views of a defective part that do not show its defect.
  """
  folders = list_folders(root)
  lists = folders.get(REAL_IAD_LISTS, root)
  lists = list_folders(lists).get(REAL_IAD_LISTS, lists)
  tables = {
    path.stem: path for path in scan(lists)[1] if path.suffix == ".json"
  }
  images = next((folders[name] for name in _REAL_IAD if name in folders), None)
  if not tables or not images:
    return Listing(
      problems=[
        f"{root} must contain realiad_jsons/CATEGORY.json and"
        " realiad_1024/CATEGORY/*"
      ]
    )
  listing = Listing(
    oddities=[f"the lists in {lists} and the images in {images} are read"]
  )
  for category in categories or tables:
    part = read_table(
      root,
      (category,),
      table=tables.get(category, lists / f"{category}.json"),
      parse=functools.partial(_parse_real_iad, images.name, category),
    )
    listing.images += part.images
    listing.problems += part.problems
    listing.oddities += part.oddities
  return listing


def _parse_real_iad(folder, category, text):
  content = json.loads(text)
  return {
    split: {
      category: [
        {
          "img_path": f"{folder}/{category}/{row['image_path']}",
          "mask_path": row["mask_path"]
          and f"{folder}/{category}/{row['mask_path']}",
          "specie_name": row["anomaly_class"],
          "anomaly": int(row["anomaly_class"] != "OK"),
        }
        for row in content[split]
      ]
    }
    for split in SPLITS
  }


def _add_entries(root, split, category, entries, place, listing):
  """Adds the images of a category in a split to the listing."""
  if not isinstance(entries, list) or not all(
    isinstance(entry, dict)
    and isinstance(entry.get("img_path"), str)
    and isinstance(entry.get("mask_path") or "", str)
    and isinstance(entry.get("anomaly"), int | float)
    and 0 <= entry["anomaly"] <= 1
    for entry in entries
  ):
    listing.problems.append(
      f"{place}: expected a list of entries with img_path and mask_path (text)"
      " and anomaly (0 or 1)"
    )
    return
  named = [entry for entry in entries if entry["img_path"].strip()]
  if len(named) < len(entries):
    listing.oddities.append(
      f"{place}: entries without an img_path skipped:"
      f" {len(entries) - len(named)}"
    )
  sure = [entry for entry in named if entry["anomaly"] in (0, 1)]
  if len(sure) < len(named):
    listing.oddities.append(
      f"{place}: images with an anomaly probability between 0 and 1 skipped:"
      f" {len(named) - len(sure)}"
    )
  anomalous = [entry for entry in sure if entry["anomaly"]]
  unmasked = [entry for entry in anomalous if not entry.get("mask_path")]
  has_mask = len(unmasked) < len(anomalous) or not anomalous
  if has_mask and unmasked:
    listing.problems.append(
      f"{place}: {len(unmasked)} of {len(anomalous)} anomalous images have no"
      f" mask_path, such as {unmasked[0]['img_path']}. Set mask_path for all of"
      " them or for none"
    )
  for entry in sure:
    image = _listed_file(root, entry["img_path"], place, listing)
    kind, masks = NORMAL_KIND, []
    if entry["anomaly"]:
      kind = entry.get("specie_name")
      kind = "anomaly" if kind in (None, "", NORMAL_KIND) else str(kind)
      if entry.get("mask_path"):
        masks = [_listed_file(root, entry["mask_path"], place, listing)]
    if image and all(masks):
      listing.images.append(
        ListedImage(split, category, kind, image, masks, has_mask)
      )


def _listed_file(
  root: pathlib.Path, text: str | None, place: str, listing: Listing
) -> pathlib.Path | None:
  """Returns a listed file below the root, or adds a problem."""
  text = text or ""
  if "\\" in text and not (root / text).is_file():
    text = text.replace("\\", "/")  # The list was written on Windows.
  text = os.path.normpath(text)
  if text == os.curdir:
    listing.problems.append(f"{place}: a path is empty")
    return None
  if re.match("/|[a-zA-Z]:/", text):
    text = _relative(root, text, listing)
  if os.path.isabs(text) or text.split(os.sep)[0] == os.pardir:
    listing.problems.append(f"{place}: {text} is outside {root}")
  elif not (root / text).is_file():
    listing.problems.append(f"{place}: {root / text} does not exist")
  else:
    return root / text
  return None


def _relative(root: pathlib.Path, text: str, listing: Listing) -> str:
  """Converts an absolute path to one below the root, if that file exists."""
  if pathlib.Path(text).is_relative_to(root):
    return os.path.relpath(text, root)
  parts = text.split("/")
  for start in range(1, len(parts)):
    tail = "/".join(parts[start:])
    if (root / tail).is_file():
      note = f"{'/'.join(parts[:start])} in listed paths is replaced by {root}"
      if note not in listing.oddities:
        listing.oddities.append(note)
      return tail
  return text
