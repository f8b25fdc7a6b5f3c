"""Finds image files; skips hidden and system files."""

from __future__ import annotations

import collections
import glob
import importlib.util
import logging
import os
import pathlib
from collections.abc import Iterable

from cops_jax.errors import InputError

_logger = logging.getLogger(__name__)

# Lists the files that `cops predict` wrote to a folder.
MANIFEST = ".cops_predict.json"
_HEIC_SUFFIXES = (".heic", ".heif", ".hif")
IMAGE_SUFFIXES = (
  *(".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"),
  *(_HEIC_SUFFIXES if importlib.util.find_spec("pillow_heif") else ()),
)
# Images with these suffixes are counted, but not read.
_OTHER_SUFFIXES = (
  *_HEIC_SUFFIXES,
  *(".avif", ".gif", ".jp2", ".jxl", ".pgm", ".ppm", ".psd", ".tga"),
  *(".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".raw", ".rw2"),
  *(".dcm", ".exr", ".hdr", ".nii"),
)
_SYSTEM = (
  *("thumbs.db", "desktop.ini", "@eadir", "#recycle", "$recycle.bin"),
  *("lost+found", "__macosx", "__pycache__"),
)


def is_hidden(name: str) -> bool:
  """Returns True for hidden and system names, such as ._a.png or Thumbs.db."""
  return name.startswith(".") or name.casefold() in _SYSTEM


def is_place(text: str) -> bool:
  """Returns True for an existing file or folder, or a pattern of some."""
  path = os.path.expanduser(text)
  return os.path.exists(path) or bool(
    glob.glob(path, recursive=True, include_hidden=True)
  )


def find_images(
  places: Iterable[str],
  out: str | os.PathLike | None = None,
  skipped: collections.Counter | None = None,
) -> list[pathlib.Path]:
  """Returns image files in the order of the places, without duplicates.

  Skips hidden files, folders that `cops predict` wrote, and images in
  unsupported formats. Warnings report the number of skipped files.

  Args:
    places: files, folders and patterns such as "photos/**/*.jpg". Folders are
      searched recursively for image suffixes.
    out: output folder, which is skipped too.
    skipped: receives the numbers of images in unsupported formats, by suffix.

  Raises:
    InputError: if a place contains no image.
  """
  skipped = collections.Counter() if skipped is None else skipped
  out = out and os.path.realpath(out)
  found, hidden = {}, []
  for place in places:
    try:
      paths = _find(pathlib.Path(place).expanduser(), out, hidden, skipped)
    except (OSError, RuntimeError) as error:  # Such as ~ of an unknown user.
      raise InputError(f"{place} cannot be read: {error}") from error
    if not paths:
      others = f"; {_explain(skipped)}" if skipped else ""
      raise InputError(
        f"{place} is not a file, folder or pattern with images in it"
        f" ({', '.join(IMAGE_SUFFIXES)}){others}"
      )
    for path in paths:
      found.setdefault(os.path.realpath(path), path)
  if hidden:
    _logger.warning(
      "hidden or system files skipped: %d, such as %s", len(hidden), hidden[0]
    )
  if skipped:
    _logger.warning("%s", _explain(skipped))
  return list(found.values())


def _explain(skipped):
  """Returns a message about skipped images, with a remedy if there is one."""
  counts = [f"{number} {suffix}" for suffix, number in skipped.most_common()]
  text = f"images in unsupported formats skipped: {', '.join(counts)}"
  if not skipped.keys().isdisjoint(_HEIC_SUFFIXES):
    text += '; to read HEIC, run pip install "cops-jax[heic]"'
  return text


def _find(path, out, hidden, skipped):
  if path.is_dir():
    return sorted(_walk(path, out, hidden, skipped))
  if path.is_file():
    return [path]
  named, files = {*path.parts, ""}, []
  for name in sorted(glob.glob(str(path), recursive=True, include_hidden=True)):
    file = pathlib.Path(name)
    if any(map(is_hidden, set(file.parts) - named)):
      hidden.append(file.name)
    elif not file.is_dir() and not any(
      _has_results(parent, out)
      for parent in file.parents
      if parent.name not in named
    ):
      files.append(file)
  return files


def _walk(folder, out, hidden, skipped):
  """Yields files with image suffixes; raises OSError for unreadable folders."""

  def fail(error):
    raise error

  for parent, folders, files in os.walk(folder, onerror=fail):
    hidden += filter(is_hidden, (*folders, *files))
    folders[:] = [
      name
      for name in folders
      if not is_hidden(name)
      and not _has_results(pathlib.Path(parent, name), out)
    ]
    for name in files:
      suffix = os.path.splitext(name)[1].lower()
      if is_hidden(name):
        continue
      if suffix in IMAGE_SUFFIXES:
        # A broken link is reported as an image that cannot be read.
        yield pathlib.Path(parent, name)
      elif suffix in _OTHER_SUFFIXES:
        skipped[suffix] += 1


def _has_results(folder, out):
  is_out = out and os.path.realpath(folder) == out
  return is_out or (folder / MANIFEST).is_file()
