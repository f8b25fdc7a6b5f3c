"""Lists the images and masks of a data set, and problems with them."""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cops_jax.errors import InputError
from cops_jax.images.finding import IMAGE_SUFFIXES, is_hidden
from cops_jax.tables import count_of, shorten_list

NORMAL_KIND = "good"

SPLITS = ("train", "test")
_MASK_ENDING = re.compile(r"[-_. ](masks?|gt|ground_?truth|segmentation)$")


@dataclasses.dataclass(frozen=True)
class ListedImage:
  """One image of a data set.

  Attributes:
    split: "train" or "test".
    anomaly_kind: kind of the anomaly; "good" for a normal image.
    masks: mask files, which are united; empty for images without a mask.
    has_mask: False if there is no pixel-level ground truth.
  """

  split: str
  category: str
  anomaly_kind: str
  image: pathlib.Path
  masks: Sequence[pathlib.Path]
  has_mask: bool

  @property
  def is_anomaly(self) -> bool:
    return self.anomaly_kind != NORMAL_KIND


@dataclasses.dataclass
class Listing:
  """All images that a reader found, and all problems.

  Attributes:
    problems: faults that must be fixed before the data set can be used.
    oddities: notes on skipped files and on guesses.
    hidden: hidden files and folders, which are skipped.
    root: folder that ids are relative to, if it is below the requested folder.
  """

  images: list[ListedImage] = dataclasses.field(default_factory=list)
  problems: list[str] = dataclasses.field(default_factory=list)
  oddities: list[str] = dataclasses.field(default_factory=list)
  hidden: set[pathlib.Path] = dataclasses.field(default_factory=set)
  root: pathlib.Path | None = None

  @property
  def notes(self) -> list[str]:
    """The oddities and the number of hidden files."""
    if not self.hidden:
      return self.oddities
    return [*self.oddities, f"hidden files skipped: {len(self.hidden)}"]

  def require_no_problems(self, name: str) -> None:
    """Raises InputError with the first problems, if there are any."""
    if self.problems:
      shown = shorten_list(self.problems)
      raise InputError(
        f"the files of data set {name!r} are not as expected:"
        + "".join(f"\n  {problem}" for problem in shown)
      )


@dataclasses.dataclass(frozen=True)
class KindFolder:
  """A folder of images of one kind and, if there is one, a folder of masks.

  It is searched recursively. The kind of normal images is "good".
  """

  split: str
  kind: str
  path: pathlib.Path
  masks: pathlib.Path | None = None


def add_images(
  listing: Listing,
  category: str,
  folders: Iterable[KindFolder],
  *,
  parent: pathlib.Path,
  has_mask: bool,
  masks_among_images: bool = False,
  all_required: bool = False,
) -> None:
  """Adds the images in the folders of a category to a listing.

  Args:
    listing: receives the images, problems and oddities.
    category, folders: name and folders of the category.
    parent: folder of its test images, for messages.
    has_mask: True if there is pixel-level ground truth.
    masks_among_images: if True, searches image folders for masks (x_mask.png,
      or x.png for x.jpg). If there are any, skips anomalous images without one.
    all_required: if True, a folder without images is a problem.
  """
  found = {}  # Folders by image.
  mask_of = {}
  for folder in folders:
    files = list_images(folder.path, listing)
    if masks_among_images:
      masks_here = _find_masks_among(files, folder.path)
      masks = {mask for group in masks_here.values() for mask in group}
      files = [file for file in files if file not in masks]
      mask_of |= masks_here if folder.kind != NORMAL_KIND else {}
    if not files:
      messages = listing.problems if all_required else listing.oddities
      messages.append(f"{folder.path} has no images")
    found |= dict.fromkeys(files, folder)
  if not any(folder.split == "test" for folder in found.values()):
    listing.problems.append(
      f"category {category!r} has no test images in {parent}"
    )
  anomalous = [f for f, folder in found.items() if folder.kind != NORMAL_KIND]
  if mask_of:
    has_mask = True
    listing.oddities.append(
      f"{category}: masks are read from the folders of the images"
    )
    if alone := [file for file in anomalous if file not in mask_of]:
      listing.oddities.append(
        f"{category}: {len(alone)} of {len(anomalous)} anomalous images have no"
        f" mask in their folder and are skipped, such as {alone[0]}"
      )
      found = {
        file: folder
        for file, folder in found.items()
        if folder.kind == NORMAL_KIND or file in mask_of
      }
  elif has_mask:
    groups = collections.defaultdict(dict)
    for file in anomalous:
      groups[found[file].masks][file] = found[file].path
    for folder, images in groups.items():
      mask_of |= pair_masks(images, folder, listing)
  listing.images += [
    ListedImage(
      folder.split, category, folder.kind, file, mask_of.get(file, ()), has_mask
    )
    for file, folder in found.items()
  ]


def _find_masks_among(files, folder):
  """Returns masks by image, for the files in a folder."""
  groups = collections.defaultdict(list)
  for file in files:
    groups[_key(file, folder)].append(file)
  found = {}
  for group in groups.values():
    masks = [file for file in group if _MASK_ENDING.search(file.stem.lower())]
    kinds = {file.suffix.lower() for file in group}
    if not masks and kinds in ({".png", ".jpg"}, {".png", ".jpeg"}):
      masks = [file for file in group if file.suffix.lower() == ".png"]
    images = [file for file in group if file not in masks]
    if masks and len(images) == 1:
      found[images[0]] = masks
  return found


def pair_masks(
  images: Mapping[pathlib.Path, pathlib.Path],
  folder: pathlib.Path,
  listing: Listing,
) -> dict[pathlib.Path, list[pathlib.Path]]:
  """Returns the masks of each image, or an empty dict if they do not match.

  Masks are matched by their names below the folder, in any case and without an
  ending such as "_mask" or "_GT". A folder named after an image can contain
  several masks of it. If no name matches and the numbers of files are equal,
  images and masks are matched in sorted order, with numbers sorted by value. If
  both fail, the listing receives a problem.

  Args:
    images: anomalous images, each with the folder that its name is relative to.
    folder: folder of the masks.
    listing: receives problems and oddities.
  """
  masks = list_images(folder, listing)
  image_of = {_key(image, above): image for image, above in images.items()}
  mask_of = collections.defaultdict(list)
  is_unique = len(image_of) == len(images)
  for mask in masks:
    key = _key(mask, folder)
    if key not in image_of and key[:-1] in image_of:
      key = key[:-1]
    else:
      is_unique &= key not in mask_of
    mask_of[key].append(mask)
  shared = image_of.keys() & mask_of.keys()
  if is_unique and len(shared) == len(images):
    listing.oddities += [
      f"{mask} belongs to no image and is skipped"
      for key in sorted(mask_of.keys() - shared)
      for mask in mask_of[key]
    ]
    return {image: mask_of[key] for key, image in image_of.items()}
  if not shared and len(images) == len(masks):
    return _pair_by_order(images, masks, folder, listing)
  alone = [image for key, image in image_of.items() if key not in shared]
  reason = "the names do not match"
  if alone and shared:
    reason = f"no mask is named after {alone[0].name}"
  parents = ", ".join(sorted({str(image.parent) for image in images}))
  numbers = f"{count_of(len(masks), 'mask')}, {count_of(len(images), 'image')}"
  listing.problems.append(
    f"masks in {folder} cannot be assigned to the anomalous images in"
    f" {parents} ({numbers}): {reason}. Name each mask after its image"
  )
  return {}


def _pair_by_order(images, masks, folder, listing):
  pairs = dict(
    zip(
      sorted(images, key=_sort_key), sorted(masks, key=_sort_key), strict=True
    )
  )
  for image, mask in pairs.items():
    numbers = [re.findall("[0-9]+", file.stem) for file in (image, mask)]
    if all(numbers) and len({int(found[-1]) for found in numbers}) > 1:
      listing.problems.append(
        f"{folder}: no mask is named after an image, and in sorted order"
        f" {mask.name} would belong to {image.name}, which has another number."
        " Name each mask after its image"
      )
      return {}
  listing.oddities.append(
    f"{folder}: no mask is named after an image, so masks are assigned to"
    " images in sorted order"
  )
  return {image: [mask] for image, mask in pairs.items()}


def list_images(folder: pathlib.Path, listing: Listing) -> list[pathlib.Path]:
  """Returns the image files in a folder and below it, by name.

  Other files and links to folders are skipped, with a note in the listing.
  """
  folders, files = scan(folder, listing)
  images = []
  for path in files:
    if is_image(path):
      images.append(path)
    else:
      listing.oddities.append(f"{path} is not an image file and is skipped")
  for path in folders:
    if path.is_symlink():
      listing.oddities.append(f"{path} is a link to a folder and is skipped")
    else:
      images += list_images(path, listing)
  return images


def is_image(path: pathlib.Path) -> bool:
  """Returns True if a file has the suffix of an image."""
  return path.suffix.lower() in IMAGE_SUFFIXES


def list_folders(
  folder: pathlib.Path, listing: Listing | None = None
) -> dict[str, pathlib.Path]:
  """Returns the folders in a folder by lower-case name, except hidden ones."""
  return {path.name.casefold(): path for path in scan(folder, listing)[0]}


def scan(
  folder: pathlib.Path, listing: Listing | None = None
) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
  """Returns folders and files in a folder; adds hidden ones to the listing."""
  if not folder.is_dir():
    return [], []
  # The folder's entries hold their types, which saves a query for each file.
  with os.scandir(folder) as entries:
    is_folder = {entry.name: entry.is_dir() for entry in entries}
  found = [], []
  for name in sorted(is_folder):
    if not is_hidden(name):
      found[not is_folder[name]].append(folder / name)
    elif listing:
      listing.hidden.add(folder / name)
  return found


def find_folder(root: pathlib.Path, path: str) -> pathlib.Path:
  """Returns a folder below a root, whose names are matched in any case."""
  for part in path.strip("/").split("/") if path else ():
    if not (root / part).is_dir():
      part = list_folders(root).get(part.casefold(), root / part).name
    root = root / part
  return root


def _key(file, folder):
  """Returns the parts of a path below a folder that identify an image."""
  parts = [part.lower() for part in file.parts[len(folder.parts) : -1]]
  return (*parts, _MASK_ENDING.sub("", file.stem.lower()))


def _sort_key(path: pathlib.Path) -> list[Any]:
  parts = re.split(r"(\d+)", path.stem.lower())
  return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
