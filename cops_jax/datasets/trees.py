"""Readers of data sets whose folders name categories and kinds of images."""

from __future__ import annotations

import difflib
import pathlib
import re
from collections.abc import Callable, Sequence

from cops_jax.datasets.layouts import (
  NORMAL_KIND,
  KindFolder,
  Listing,
  add_images,
  find_folder,
  is_image,
  list_folders,
  scan,
)
from cops_jax.tables import shorten_list

Reader = Callable[[pathlib.Path, Sequence[str]], Listing]

# Names of folders, in lower case.
_NORMAL = (NORMAL_KIND, "normal", "ok")
_TEST = ("test", "test_public")
_MASKS = ("ground_truth", "ground truth", "groundtruth", "gt", "masks", "mask")
# Names that are not read, but that probably mean the key.
_NEAR = {
  "test": ("test", "testing", "test_images", "val", "validation", "eval"),
  NORMAL_KIND: (
    *(NORMAL_KIND, "normal", "ok", "okay", "clean", "pass", "passed"),
    *("healthy", "perfect", "defect_free", "no_defect", "non_defective"),
  ),
  "ground_truth": ("ground_truth", "annotations", "labels", "segmentation"),
}


def read_tree(root: pathlib.Path, categories: Sequence[str] = ()) -> Listing:
  """Reads folders of normal images and of images of each kind of anomaly.

  These folders are in a category's folder test (MVTec AD) or test_public (MVTec
  AD 2), or in the category's own folder (Real-IAD). Normal images are in good,
  normal or ok; all other folders contain anomalous images. Masks are in
  ground_truth, masks or mask, with or without a folder for each kind, or next
  to the images. Images without masks have only labels. Names are read in any
  case.

  Args:
    root: folder of the data set or, without categories, of a single category.
    categories: categories to read; if empty, every folder that looks like one.
  """
  listing = Listing()
  if categories:
    folders = {name: find_folder(root, name) for name in categories}
  elif _find_test(root):
    folders = {root.name: root}
  else:
    folders = {f.name: f for f in scan(root, listing)[0] if _find_test(f)}
  notes = {}  # Categories by note.
  for category, folder in folders.items():
    _read_category(category, folder, listing, notes)
  for note, names in notes.items():
    listing.oddities.append(f"{', '.join(shorten_list(names))}: {note}")
  if not folders:
    listing.problems.append(
      f"{root} has no test images; expected CATEGORY/test/good/*,"
      " CATEGORY/test/DEFECT/* and CATEGORY/ground_truth/DEFECT/*, or good/*"
      f" and DEFECT/*{_advise(root)}"
    )
  return listing


def _find_test(folder):
  """Returns the test folder of a category; None for any other folder."""
  names = list_folders(folder)
  test = next((names[name] for name in _TEST if name in names), None)
  return test or (folder if names.keys() & set(_NORMAL) else None)


def _read_category(category, folder, listing, notes):
  """Adds a category's images to the listing and its name to `notes`."""

  def note(text):
    notes.setdefault(text, []).append(category)

  test = _find_test(folder)
  if test is None:
    advice = _advise(folder)
    names = list_folders(folder.parent)
    if near := difflib.get_close_matches(
      folder.name.casefold(), names, 1, 0.75
    ):
      advice = advice or f": rename {names[near[0]]} to {category}"
    listing.problems.append(
      f"category {category!r} has no test images; expected {folder}/test/*/*"
      f" in an image format{advice}"
    )
    return
  children = list_folders(folder, listing)
  places = children | list_folders(test, listing)
  masks = next((places[name] for name in _MASKS if name in places), None)
  if masks and not any(scan(masks, listing)):
    note(f"{masks.name} is empty, so the images have no masks")
    masks = None
  own = list_folders(masks) if masks else {}
  folders = []
  for path in scan(test)[0]:
    name = path.name.casefold()
    if name in _NORMAL:
      folders.append(KindFolder("test", NORMAL_KIND, path))
    elif name not in _MASKS:
      place = own.get(name, masks)
      folders.append(KindFolder("test", path.name, path, place))
  normal = [f.path.name for f in folders if f.kind == NORMAL_KIND]
  anomalous = [f for f in folders if f.kind != NORMAL_KIND]
  advice = "" if normal else _advise(test, (NORMAL_KIND,))
  if not advice and not places.keys() & set(_MASKS):
    advice = _advise(folder, ("ground_truth",))
  if nested := [f.path for f in folders if _find_test(f.path)]:
    instead = nested[0] if test == folder else test
    advice = f": {nested[0]} is a category itself; use {instead} instead"
  if own and (lacking := [f.kind for f in anomalous if f.masks == masks]):
    kind = lacking[0]
    advice = (
      f": rename the folder in {masks} with the masks of {kind} to {kind}"
    )
  if advice:
    listing.problems.append(f"category {category!r}{advice}")
    return
  if not normal:
    note("no folder is named good, normal or ok, so there are no normal images")
  if loose := sum(map(is_image, scan(test)[1])):
    note(f"images directly in {test.name} are not read: {loose}")
  if test == folder:
    note(
      f"images in {', '.join(normal)} count as normal, images in"
      f" {', '.join(f.kind for f in anomalous)} as anomalous"
    )
  else:
    folders += _find_training_folders(children, (test, masks), note)
  add_images(
    listing,
    category,
    folders,
    parent=test,
    has_mask=bool(masks),
    masks_among_images=not masks,
  )


def _find_training_folders(children, known, note):
  """Returns the folders of training images; notes the folders to skip."""
  folders = []
  for name, path in children.items():
    if name == "train":
      for kind in scan(path)[0]:
        if kind.name.casefold() in _NORMAL:
          folders.append(KindFolder("train", NORMAL_KIND, kind))
        else:  # The training split has only normal images.
          note(f"train/{kind.name} is not read")
    elif path not in known:
      is_test = name.startswith("test")
      reason = ", because it has no ground truth" if is_test else ""
      note(f"{path.name} is not read{reason}")
  return folders


def _advise(folder, wanted=tuple(_NEAR)):
  """Returns the end of a message, which advises what to rename or move.

  The result is empty without advice. `wanted` are the missing names.
  """
  folders, files = scan(folder)
  below = [path for above in folders for path in scan(above)[0]]
  for path in (*folders, *below):
    name = re.sub("[-. ]", "_", path.name.casefold())
    for want in wanted if path in folders else ("test",):
      names = [near for near in _NEAR[want] if near[0] == name[0]]
      if difflib.get_close_matches(name, names, 1, 0.75):
        return f": rename {path} to {want}"
  for path in folders:
    if any(map(_find_test, scan(path)[0])):
      return f": use {path} instead"
  if any(map(is_image, files)):
    return (
      f": move the normal images in {folder} into a folder good and the"
      " anomalous ones into a folder for each kind"
    )
  return ""


def read_folders(
  root: pathlib.Path,
  categories: Sequence[str],
  *,
  images: str,
  masks: str | None = None,
  normal: Sequence[str] = (),
  kinds: Sequence[str] = (),
) -> Listing:
  """Reads the images of a single category from folders named after their kind.

  Args:
    root, categories: folder of the data set, and name of the only category.
    images: path of the image folders below the root. {kind} at its end means
      any folder except that of the masks; without it, all images are anomalous.
    masks: path of the mask folders, also with {kind}; None without masks.
    normal: kinds of normal images, in lower case; if empty, there are none.
    kinds: required values of {kind}; if empty, {kind} can be any folder.
  """
  (category,) = categories
  listing = Listing()
  above, _, _ = images.partition("{kind}")
  parent = find_folder(root, above)
  if above == images:
    folders = {"anomaly": parent}
  elif kinds:
    folders = {kind: find_folder(parent, kind) for kind in kinds}
  else:
    folders = {path.name: path for path in scan(parent, listing)[0]}
  found = []
  for kind, path in folders.items():
    place = masks and find_folder(root, masks.format(kind=kind))
    if path != place:
      is_normal = kind.casefold() in normal
      found.append(
        KindFolder("test", NORMAL_KIND if is_normal else kind, path, place)
      )
  add_images(
    listing,
    category,
    found,
    parent=parent,
    has_mask=masks is not None,
    all_required=bool(kinds),
  )
  return listing


def read_first(
  root: pathlib.Path,
  categories: Sequence[str],
  *,
  readers: Sequence[Reader],
) -> Listing:
  """Reads the first of several layouts that exists.

  Searches the root and two levels of folders, because unpacking an archive
  often adds a folder. If no layout is complete, returns the first with images.
  """
  children = scan(root)[0]
  grandchildren = [path for child in children for path in scan(child)[0]]
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
