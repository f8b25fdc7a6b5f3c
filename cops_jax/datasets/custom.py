"""Custom data, read from their files without preparation."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

from cops_jax.datasets.layouts import (
  META_FILE,
  NORMAL_KIND,
  Listing,
  Record,
  read_folders,
  read_meta_json,
)
from cops_jax.datasets.schema import file_example
from cops_jax.errors import InputError


class FileExamples(Sequence):
  """Examples whose image and mask are paths, opened when they are decoded."""

  def __init__(self, name: str, root: pathlib.Path, records: Sequence[Record]):
    self.name, self._root, self._records = name, root, records
    self.identity = str(root)

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return file_example(self._records[index], self._root, self.name)

  def fingerprint(self) -> str:
    """Changes with any file's path, size or time."""
    digest = hashlib.sha256()
    for record in self._records:
      for path in (record.image, record.mask):
        if path is not None:
          stat = path.stat()
          state = f"{path} {stat.st_size} {stat.st_mtime_ns}"
          digest.update(f"{state} {record}\n".encode())
    return digest.hexdigest()


def read_tree(root: pathlib.Path) -> Listing:
  """Reads a tree in MVTec's layout: every folder with a test folder in it.

  A root with a test folder of its own is one category. A category without a
  ground_truth folder has no masks.
  """
  if (root / "test").is_dir():
    folders = [root]
  else:
    folders = sorted(path.parent for path in root.glob("*/test"))
  if not folders:
    return Listing(
      problems=[
        f"{root} has no test images; expected CATEGORY/test/{NORMAL_KIND}/*,"
        " CATEGORY/test/DEFECT/* and CATEGORY/ground_truth/DEFECT/*"
      ]
    )
  listing = Listing()
  for folder in folders:
    part = read_folders(
      folder.parent,
      [folder.name],
      images="{category}/{split}/{kind}",
      masks="{category}/ground_truth/{kind}"
      if (folder / "ground_truth").is_dir()
      else None,
      normal=NORMAL_KIND,
    )
    listing.records += part.records
    listing.problems += part.problems
    listing.oddities += part.oddities
  return listing


# What a name such as "folder:PATH" begins with.
READERS = {"folder": read_tree, "meta_json": read_meta_json}


def locate(name: str) -> tuple[str, pathlib.Path] | None:
  """The reader's name and the root of custom data; None for other names.

  Raises:
    InputError: the path is not a folder.
  """
  reader, colon, path = name.partition(":")
  if not colon or reader not in READERS:
    return None
  root = pathlib.Path(path).expanduser().resolve()
  if reader == "meta_json" and root.name == META_FILE:
    root = root.parent
  if not path or not root.is_dir():
    raise InputError(
      f"data set {name!r}: {root if path else 'the path'} is not a folder;"
      f" expected {reader}:PATH"
    )
  return reader, root


def load_custom(reader: str, root: pathlib.Path, split: str) -> FileExamples:
  """Custom data's examples; their data set's name is that of the folder.

  Raises:
    InputError: the files are not as expected.
  """
  listing = READERS[reader](root)
  listing.require_sound(root.name)
  records = [record for record in listing.records if record.split == split]
  return FileExamples(root.name, root, records)
