"""Data sets that a file lists, with the labels of their images.

The readers are as those of folders: each gives the images it finds and, instead
of stopping at the first, everything that is wrong.
"""

from __future__ import annotations

import collections
import csv
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from cops_jax.datasets.layouts import (
  NORMAL_KIND,
  SPLITS,
  ListedImage,
  Listing,
  list_images,
)

VISA_TABLE = "split_csv/1cls.csv"
META_FILE = "meta.json"

_VISA_COLUMNS = ("object", "split", "label", "image", "mask")


def read_labels(
  root: pathlib.Path,
  categories: Sequence[str],
  *,
  table: str,
  images: str,
) -> Listing:
  """Reads a table of image numbers and labels, 1 for anomalies; no masks.

  Args:
    root: of the data set.
    categories: one, of all images.
    table: a file with two columns below a header.
    images: the folder of the images, named by their numbers.
  """
  listing = Listing()
  (category,) = categories
  path = root / table
  try:
    with path.open(newline="", encoding="utf-8-sig") as file:
      rows = [(int(row[0]), int(row[1])) for row in list(csv.reader(file))[1:]]
  except (*(OSError, csv.Error, ValueError), IndexError) as error:
    listing.problems.append(f"{path} cannot be read: {error}")
    return listing
  labels = dict(rows)
  for file in list_images(root / images, listing):
    label = labels.pop(int(file.stem), None) if file.stem.isdecimal() else None
    if label is None:
      listing.oddities.append(f"{path} does not list {file.name}")
      continue
    kind = "anomaly" if label else NORMAL_KIND
    listing.images.append(
      ListedImage("test", category, kind, file, None, has_mask=False)
    )
  if labels:
    listing.problems.append(
      f"{path} lists {len(labels)} images that are not in {root / images},"
      f" {min(labels)} among them"
    )
  return listing


def read_visa(root: pathlib.Path, categories: Sequence[str]) -> Listing:
  """Reads VisA's table, whose paths are relative to the root."""
  listing = Listing()
  table = root / VISA_TABLE
  try:
    with table.open(newline="", encoding="utf-8-sig") as file:
      reader = csv.DictReader(file)
      missing = set(_VISA_COLUMNS) - set(reader.fieldnames or ())
      rows = list(reader)
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    listing.problems.append(f"{table}, VisA's table, cannot be read: {error}")
    return listing
  if missing:
    listing.problems.append(
      f"{table} lacks the columns {', '.join(sorted(missing))}"
    )
    return listing
  found = {row["object"] for row in rows if row["split"] == "test"}
  if absent := [name for name in categories if name not in found]:
    listing.problems.append(f"{table} has no test rows for {', '.join(absent)}")
  for number, row in enumerate(rows, start=2):
    place = f"{table}, line {number}"
    if row["split"] not in SPLITS or row["label"] not in ("normal", "anomaly"):
      listing.problems.append(
        f"{place}: split {row['split']!r} and label {row['label']!r}; expected"
        " train or test, and normal or anomaly"
      )
      continue
    is_anomaly = row["label"] == "anomaly"
    image = _listed_file(root, row["image"], place, listing)
    mask = None
    if is_anomaly:
      mask = _listed_file(root, row["mask"], place, listing)
    if image:
      kind = "anomaly" if is_anomaly else NORMAL_KIND
      listing.images.append(
        ListedImage(
          row["split"], row["object"], kind, image, mask, has_mask=True
        )
      )
  _note_repetitions(listing, table)
  return listing


def read_meta_json(root: pathlib.Path) -> Listing:
  """Reads the list of AnomalyCLIP, AdaCLIP and the authors' code.

  {"train": {CATEGORY: [ENTRY, ...]}, "test": {...}} where an entry has img_path
  and mask_path, relative to the root or absolute, specie_name, the kind of
  anomaly, and anomaly, 0 or 1. Of absolute paths from elsewhere, the longest
  end that is a file below the root counts. A category has masks for all its
  anomalous images or, with empty mask_paths, for none.
  """
  listing = Listing()
  table = root / META_FILE
  try:
    splits = json.loads(table.read_text(encoding="utf-8-sig"))
  except (OSError, ValueError, RecursionError) as error:
    listing.problems.append(f"{table} cannot be read: {error}")
    return listing
  if not isinstance(splits, dict) or not splits.get("test"):
    listing.problems.append(f'{table} has no "test" images')
    return listing
  for split in SPLITS:
    categories = splits.get(split) or {}
    if not isinstance(categories, dict):
      listing.problems.append(
        f"{table}: {split!r} is not a table of categories"
      )
      continue
    for category, entries in categories.items():
      place = f"{table}, {split} {category}"
      _read_meta_category(root, split, category, entries, place, listing)
  _note_repetitions(listing, table)
  return listing


def _read_meta_category(
  root: pathlib.Path,
  split: str,
  category: str,
  entries: Any,
  place: str,
  listing: Listing,
) -> None:
  if not isinstance(entries, list) or not all(
    isinstance(entry, dict)
    and isinstance(entry.get("img_path"), str)
    and isinstance(entry.get("mask_path") or "", str)
    and entry.get("anomaly") in (0, 1)
    for entry in entries
  ):
    listing.problems.append(
      f"{place}: expected a list of entries with img_path, mask_path (text) and"
      " anomaly (0 or 1)"
    )
    return
  named = [entry for entry in entries if entry["img_path"].strip()]
  if len(named) < len(entries):
    listing.oddities.append(
      f"{place}: {len(entries) - len(named)} entries without an img_path were"
      " left out"
    )
  entries = named
  anomalous = [entry for entry in entries if entry["anomaly"]]
  unmasked = [entry for entry in anomalous if not entry.get("mask_path")]
  has_mask = len(unmasked) < len(anomalous) or not anomalous
  if has_mask and unmasked:
    listing.problems.append(
      f"{place}: {len(unmasked)} of {len(anomalous)} anomalous images have no"
      f" mask_path, {unmasked[0]['img_path']} among them; give one to each or"
      " to none"
    )
  for entry in entries:
    image = _listed_file(root, entry["img_path"], place, listing)
    mask = None
    if entry["anomaly"] and entry.get("mask_path"):
      mask = _listed_file(root, entry["mask_path"], place, listing)
    kind = NORMAL_KIND
    if entry["anomaly"]:
      named = entry.get("specie_name") not in (None, "", NORMAL_KIND)
      kind = str(entry["specie_name"]) if named else "anomaly"
    if image:
      listing.images.append(
        ListedImage(split, category, kind, image, mask, has_mask)
      )


def _listed_file(
  root: pathlib.Path, text: str | None, place: str, listing: Listing
) -> pathlib.Path | None:
  """A file that a list names, if it exists and is below the root."""
  text = text or ""
  if "\\" in text and not (root / text).is_file():
    text = text.replace("\\", "/")  # Written on Windows.
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
  """An absolute path as one from the root, if there is such a file."""
  if pathlib.Path(text).is_relative_to(root):
    return os.path.relpath(text, root)
  parts = text.split("/")
  for start in range(1, len(parts)):
    tail = "/".join(parts[start:])
    if (root / tail).is_file():
      note = (
        f"paths begin with {'/'.join(parts[:start])}, which is taken for {root}"
      )
      if note not in listing.oddities:
        listing.oddities.append(note)
      return tail
  return text


def _note_repetitions(listing: Listing, table: pathlib.Path) -> None:
  counts = collections.Counter(record.image for record in listing.images)
  listing.problems += [
    f"{table} lists {image} {count} times"
    for image, count in counts.items()
    if count > 1
  ]
