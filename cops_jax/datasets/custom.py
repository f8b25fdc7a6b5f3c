"""Custom data, read from their files without preparation."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from cops_jax.datasets.layouts import (
  NORMAL_KIND,
  ListedImage,
  Listing,
  list_folders,
  read_folders,
)
from cops_jax.datasets.lists import META_FILE, read_meta_json
from cops_jax.datasets.schema import file_example
from cops_jax.errors import InputError
from cops_jax.files import digest_file, digest_lines, file_state
from cops_jax.paths import require_local

_NORMAL_NAMES = (NORMAL_KIND, "normal", "ok")


class FileExamples(Sequence):
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
          *(look(example[name]) for name in ("image", "mask")),
        ]
      )
      for example in self
    )


def read_tree(root: pathlib.Path) -> Listing:
  """Reads a tree in MVTec's layout: every folder with a test folder in it.

  A root with a test folder of its own is one category. A category without a
  ground_truth folder has no masks. Normal images are in good, normal or ok.
  """
  if (root / "test").is_dir():
    folders = [root]
  else:
    folders = [path for path in list_folders(root) if (path / "test").is_dir()]
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
      normal=_NORMAL_NAMES,
    )
    listing.images += part.images
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
  require_local(path, f"the folder of data set {name!r}")
  root = pathlib.Path(path).expanduser().resolve()
  if reader == "meta_json" and root.name == META_FILE:
    root = root.parent
  if not path or not root.is_dir():
    raise InputError(
      f"data set {name!r}: {root if path else 'the path'} is not a folder;"
      f" expected {reader}:PATH"
    )
  return reader, root


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
  """Custom data's examples; their data set's name is that of the folder.

  Raises:
    InputError: the files are not as expected.
  """
  listing = read_listing(reader, root)
  listing.require_sound(root.name)
  listing.warn(root.name)
  images = [image for image in listing.images if image.split == split]
  return FileExamples(root.name, root, images, listing.oddities, by_contents)
