"""Data sets' folders as their publishers lay them out.

Each reader lists the images it finds and, instead of stopping at the first,
everything that is wrong.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from cops_jax.errors import InputError
from cops_jax.images.decoding import IMAGE_SUFFIXES
from cops_jax.tables import shorten_list

_logger = logging.getLogger(__name__)

NORMAL_KIND = "good"

SPLITS = ("train", "test")
_JUNK = ("thumbs.db", "desktop.ini")
_MASK_ENDING = re.compile(r"[-_. ](masks?|gt|ground_?truth|segmentation)$")


@dataclasses.dataclass(frozen=True)
class ListedImage:
  """One image of a data set.

  Attributes:
    split: "train" or "test".
    category: of the product or organ.
    anomaly_kind: the kind of anomaly; "good" for a normal image.
    image: the file.
    mask: its mask's file; None for a normal image, and without `has_mask`.
    has_mask: False where no ground truth by pixels exists.
  """

  split: str
  category: str
  anomaly_kind: str
  image: pathlib.Path
  mask: pathlib.Path | None
  has_mask: bool

  @property
  def is_anomaly(self) -> bool:
    return self.anomaly_kind != NORMAL_KIND


@dataclasses.dataclass
class Listing:
  """The images and problems that a reader found.

  Attributes:
    images: the images.
    problems: what must be fixed before the data set can be used.
    oddities: what was left out or guessed, and may well be right.
    root: the folder that ids are relative to, where that is below the one that
      was asked for.
  """

  images: list[ListedImage] = dataclasses.field(default_factory=list)
  problems: list[str] = dataclasses.field(default_factory=list)
  oddities: list[str] = dataclasses.field(default_factory=list)
  root: pathlib.Path | None = None

  def warn(self, name: str) -> None:
    """Logs the first oddities, if there are any."""
    if self.oddities:
      _logger.warning(
        "data set %s: %s",
        name,
        "; ".join(shorten_list(self.oddities)),
      )

  def require_sound(self, name: str) -> None:
    """Raises InputError, with the first problems, if there are any."""
    if self.problems:
      shown = shorten_list(self.problems)
      raise InputError(
        f"the files of data set {name!r} are not as expected:"
        + "".join(f"\n  {problem}" for problem in shown)
      )


Reader = Callable[[pathlib.Path, Sequence[str]], Listing]


def read_folders(
  root: pathlib.Path,
  categories: Sequence[str],
  *,
  images: str,
  masks: str | None,
  normal: Sequence[str] = (),
  kinds: Sequence[str] = (),
) -> Listing:
  """Reads images from folders that tell their category, split and kind.

  Args:
    root: of the data set.
    categories: to read.
    images: the folders of images below the root. {category} and {split} stand
      for their names, and {kind}, at the end, for any folder there but that of
      the masks. Without it, every image has an anomaly.
    masks: likewise the folders of the masks; None if there are none.
    normal: kinds of normal images, in lower case, which stand for any case;
      without one, all images are anomalies.
    kinds: the only folders that {kind} stands for, in any case, all of them
      required.
  """

  @functools.cache
  def is_normal(kind):
    return kind.casefold() in normal

  listing = Listing()
  above, _, _ = images.partition("{kind}")
  for category in categories:
    found = []  # Split, kind and file.
    for split in SPLITS if "{split}" in images else ("test",):
      parent = root / above.format(category=category, split=split)
      if above == images:
        folders = {"anomaly": parent}
      elif kinds:
        present = {path.name.casefold(): path for path in list_folders(parent)}
        folders = {kind: present.get(kind, parent / kind) for kind in kinds}
      else:
        folders = {
          folder.name: folder
          for folder in list_folders(parent)
          if folder != root / (masks or "")
        }
      for kind, folder in folders.items():
        if split == "train" and not is_normal(kind):
          continue  # That split is of normal images only.
        files = list_images(folder, listing)
        if not files:
          worry = listing.problems if kind in kinds else listing.oddities
          worry.append(f"{folder} has no images")
        found += [(split, kind, file) for file in files]
    if not any(split == "test" for split, _, _ in found):
      listing.problems.append(
        f"category {category!r} has no test images; expected"
        f" {parent / ('' if above == images else '*')}/*.png or another format"
      )
    mask_folders = collections.defaultdict(list)
    for _, kind, file in found:
      if masks and not is_normal(kind):
        folder = root / masks.format(category=category, kind=kind)
        mask_folders[folder].append(file)
    mask_of = {}
    for folder, files in mask_folders.items():
      mask_of |= pair_masks(files, folder, listing)
    listing.images += [
      ListedImage(
        split,
        category,
        NORMAL_KIND if is_normal(kind) else kind,
        file,
        mask_of.get(file),
        has_mask=masks is not None,
      )
      for split, kind, file in found
    ]
  return listing


def read_first(
  root: pathlib.Path,
  categories: Sequence[str],
  *,
  readers: Sequence[Reader],
) -> Listing:
  """Reads the first of several layouts that is there, or almost there.

  Each is looked for in the root, then in the folders below it, then in theirs:
  archives add a folder, and so do people.

  Args:
    root, categories: as for the readers.
    readers: the publisher's own layout, then others.
  """
  children = list_folders(root)
  grandchildren = [path for child in children for path in list_folders(child)]
  best = None
  for folder in (root, *children, *grandchildren):
    for reader in readers:
      listing = reader(folder, categories)
      if listing.images and folder != root:
        listing.root = folder
        listing.oddities.append(f"the images are read from {folder}")
      if listing.images and not listing.problems:
        return listing
      if best is None or (listing.images and not best.images):
        best = listing
  return best


def pair_masks(
  images: Sequence[pathlib.Path], folder: pathlib.Path, listing: Listing
) -> dict[pathlib.Path, pathlib.Path]:
  """Each image's mask: by stem, else by sorted order where the counts agree.

  Stems are compared without case and without an ending such as "_mask" or
  "_GT". Order takes numbers in names by their value. Where neither pairs them,
  that becomes a problem of the listing.
  """
  masks = list_images(folder, listing)
  image_of = {_stem(image): image for image in images}
  mask_of = {_stem(mask): mask for mask in masks}
  shared = image_of.keys() & mask_of.keys()
  is_unique = len(image_of) == len(images) and len(mask_of) == len(masks)
  if is_unique and len(shared) == len(images):
    listing.oddities += [
      f"{mask_of[stem]} is the mask of no image"
      for stem in sorted(mask_of.keys() - shared)
    ]
    return {image_of[stem]: mask_of[stem] for stem in image_of}
  if not shared and len(images) == len(masks):
    pairs = dict(
      zip(
        sorted(images, key=_sort_key), sorted(masks, key=_sort_key), strict=True
      )
    )
    for image, mask in pairs.items():
      if _numbers(image) and _numbers(mask) and not _agree(image, mask):
        listing.problems.append(
          f"{folder}: names match no image's, and in sorted order {mask.name}"
          f" would be the mask of {image.name}, whose number differs. Name each"
          " mask as its image"
        )
        return {}
    listing.oddities.append(
      f"{folder}: names match no image's, so masks were paired by sorted order"
    )
    return pairs
  alone = next((image for image in images if _stem(image) not in shared), None)
  reason = f"{alone.name} has none" if alone and shared else "names do not pair"
  parents = ", ".join(sorted({str(image.parent) for image in images}))
  listing.problems.append(
    f"{folder} holds {len(masks)} masks for the {len(images)} anomalous images"
    f" of {parents}: {reason}"
  )
  return {}


def list_images(folder: pathlib.Path, listing: Listing) -> list[pathlib.Path]:
  """Image files by name; notes other files, except those of the system."""
  if not folder.is_dir():
    return []
  images = []
  # The folder says what is a file, without a question for each of a million.
  with os.scandir(folder) as entries:
    is_file = {entry.name: entry.is_file() for entry in entries}
  for name in sorted(is_file):
    if name.startswith(".") or name.lower() in _JUNK:
      continue
    path = folder / name
    if is_file[name] and path.suffix.lower() in IMAGE_SUFFIXES:
      images.append(path)
    else:
      listing.oddities.append(f"{path} is not an image file and was left out")
  return images


def list_folders(folder: pathlib.Path) -> list[pathlib.Path]:
  """Folders in a folder by name, but for hidden ones; none if it is none."""
  if not folder.is_dir():
    return []
  return sorted(
    path
    for path in folder.iterdir()
    if path.is_dir() and not path.name.startswith((".", "__"))
  )


def _stem(path: pathlib.Path) -> str:
  return _MASK_ENDING.sub("", path.stem.lower())


def _numbers(path: pathlib.Path) -> list[int]:
  return [int(digits) for digits in re.findall(r"[0-9]+", path.stem)]


def _agree(image: pathlib.Path, mask: pathlib.Path) -> bool:
  return _numbers(image)[-1] == _numbers(mask)[-1]


def _sort_key(path: pathlib.Path) -> list[Any]:
  parts = re.split(r"(\d+)", path.stem.lower())
  return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
