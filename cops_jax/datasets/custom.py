"""Custom data, read from their files without preparation."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from cops_jax.datasets.layouts import ListedImage, Listing, list_folders
from cops_jax.datasets.lists import (
  META_FILE,
  REAL_IAD_LISTS,
  read_meta_json,
  read_real_iad,
)
from cops_jax.datasets.schema import Examples, file_example
from cops_jax.datasets.trees import read_tree
from cops_jax.errors import InputError
from cops_jax.files import digest_file, digest_lines, file_state
from cops_jax.paths import require_local, to_path


class FileExamples(Examples):
  """Examples whose image and mask are paths, opened when they are decoded."""

  is_published = False

  def __init__(
    self,
    name: str,
    root: pathlib.Path,
    images: Sequence[ListedImage],
    notes: Sequence[str] = (),
    by_contents: bool = False,
  ):
    self.name, self._root, self._images = name, root, images
    self.identity, self.notes = str(root), tuple(notes)
    self._by_contents = by_contents

  def __len__(self) -> int:
    return len(self._images)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return file_example(self._images[index], self._root, self.name)

  def fingerprint(self) -> str:
    """Returns one SHA-256 of the listing: names, labels and files' states.

    A file's state is its size and time or, if asked for, its bytes. The
    folder's own place does not count.
    """
    look = digest_file if self._by_contents else file_state
    facts = ("id", "category", "anomaly_kind", "label", "has_mask")
    return digest_lines(
      json.dumps(
        [
          *(example[name] for name in facts),
          look(example["image"]),
          *map(look, masks if isinstance(masks, list) else [masks]),
        ]
      )
      for example in self
      for masks in [example["mask"]]
    )


def _read_folder(root):
  """Reads Real-IAD's lists where they are, else folders."""
  has_lists = REAL_IAD_LISTS in list_folders(root)
  return (read_real_iad if has_lists else read_tree)(root)


# What a name such as "folder:PATH" begins with.
READERS = {"folder": _read_folder, "meta_json": read_meta_json}


def locate(name: str) -> tuple[str, pathlib.Path] | None:
  """The reader's name and the root of custom data; None for other names.

  Raises:
    InputError: the path is not a folder.
  """
  reader, colon, path = name.partition(":")
  if not colon or reader not in READERS:
    return None
  require_local(path, f"the folder of data set {name!r}")
  root = to_path(path).resolve()
  if reader == "meta_json" and root.name == META_FILE:
    root = root.parent
  if not path or not root.is_dir():
    raise InputError(
      f"data set {name!r}: {root if path else 'the path'} is not a folder;"
      f" expected {reader}:PATH"
    )
  return reader, root


def name_of(reader: str, root: pathlib.Path) -> str:
  """Returns the data set's name in results and caches."""
  return root.name if reader == "folder" else f"{root.name}-{reader}"


def read_listing(reader: str, root: pathlib.Path) -> Listing:
  """Returns the listing of a reader of `READERS`.

  Raises:
    InputError: a folder or list cannot be read.
  """
  try:
    return READERS[reader](root)
  except OSError as error:
    raise InputError(
      f"{error.filename or root} cannot be read: {error.strerror}"
    ) from error


def load_custom(
  reader: str, root: pathlib.Path, split: str, by_contents: bool = False
) -> FileExamples:
  """Returns custom data's examples.

  Raises:
    InputError: the files are not as expected.
  """
  name, listing = name_of(reader, root), read_listing(reader, root)
  listing.require_sound(name)
  images = [image for image in listing.images if image.split == split]
  return FileExamples(name, root, images, listing.notes, by_contents)
