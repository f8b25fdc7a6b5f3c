"""Custom data sets, read from their files without preparation."""

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
  """Examples whose images and masks are paths, which decoding opens."""

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
    """Returns a SHA-256 of the names, labels and states of all files.

    The state of a file is its size and time or, with `by_contents`, its bytes.
    The location of the folder does not matter.
    """
    state_of = digest_file if self._by_contents else file_state
    facts = ("id", "category", "anomaly_kind", "label", "has_mask")
    return digest_lines(
      json.dumps(
        [
          *(example[name] for name in facts),
          state_of(example["image"]),
          *map(state_of, masks if isinstance(masks, list) else [masks]),
        ]
      )
      for example in self
      for masks in [example["mask"]]
    )


def _read_folder(root):
  """Reads Real-IAD's lists if there are any, else the tree of folders."""
  has_lists = REAL_IAD_LISTS in list_folders(root)
  return (read_real_iad if has_lists else read_tree)(root)


# Readers by the prefix of a name such as "folder:PATH".
READERS = {"folder": _read_folder, "meta_json": read_meta_json}


def locate(name: str) -> tuple[str, pathlib.Path] | None:
  """Returns the reader and root of a custom data set; None for other names.

  Raises:
    InputError: if the path is not a folder.
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
  """Returns the name of a custom data set in results and caches."""
  return root.name if reader == "folder" else f"{root.name}-{reader}"


def read_listing(reader: str, root: pathlib.Path) -> Listing:
  """Lists the images of a custom data set that `locate` found.

  Raises:
    InputError: if a folder or list cannot be read.
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
  """Returns the examples of a custom data set that `locate` found."""
  name, listing = name_of(reader, root), read_listing(reader, root)
  listing.require_no_problems(name)
  images = [image for image in listing.images if image.split == split]
  return FileExamples(name, root, images, listing.notes, by_contents)
