"""Finds image files, without those of the system."""

from __future__ import annotations

import glob
import logging
import os
import pathlib
from collections.abc import Iterable

from cops_jax.errors import InputError

_logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_SYSTEM = (
  *("thumbs.db", "desktop.ini", "@eadir", "#recycle", "$recycle.bin"),
  *("lost+found", "__macosx", "__pycache__"),
)


def is_hidden(name: str) -> bool:
  """Whether a file or folder is one that systems and editors leave behind.

  Such as .ipynb_checkpoints, ._a.png of macOS, Thumbs.db and @eaDir.
  """
  return name.startswith(".") or name.casefold() in _SYSTEM


def is_place(text: str) -> bool:
  """Whether a text names a file, a folder or a pattern of existing ones."""
  path = os.path.expanduser(text)
  return os.path.exists(path) or bool(
    glob.glob(path, recursive=True, include_hidden=True)
  )


def find_images(places: Iterable[str]) -> list[pathlib.Path]:
  """Returns image files in the order of the places, each once.

  Hidden files and folders below a place are skipped, and a warning counts them.

  Args:
    places: files, folders and patterns such as "photos/**/*.jpg". Folders are
      searched for image suffixes, with all folders below.

  Raises:
    InputError: there is no image in a place; names it.
  """
  found, hidden = {}, []
  for place in places:
    try:
      paths = _find(pathlib.Path(place).expanduser(), hidden)
    except (OSError, RuntimeError) as error:  # Such as an unknown user.
      raise InputError(f"{place} cannot be read: {error}") from error
    if not paths:
      raise InputError(
        f"{place} is not a file, folder or pattern with images in it"
        f" ({', '.join(IMAGE_SUFFIXES)})"
      )
    for path in paths:
      found.setdefault(os.path.realpath(path), path)
  if hidden:
    _logger.warning(
      "%d hidden or system files were skipped, such as %s",
      *(len(hidden), hidden[0]),
    )
  return list(found.values())


def _find(path, hidden):
  if path.is_dir():
    return sorted(_walk(path, hidden))
  if path.is_file():
    return [path]
  named, files = set(path.parts), []
  for name in sorted(glob.glob(str(path), recursive=True, include_hidden=True)):
    file = pathlib.Path(name)
    if any(map(is_hidden, set(file.parts) - named)):
      hidden.append(file.name)
    elif not file.is_dir():
      files.append(file)
  return files


def _walk(folder, hidden):
  """Yields files with image suffixes; an unreadable folder is an error."""

  def fail(error):
    raise error

  for parent, folders, files in os.walk(folder, onerror=fail):
    hidden += filter(is_hidden, (*folders, *files))
    folders[:] = [name for name in folders if not is_hidden(name)]
    # A broken link is an image that cannot be read, and is reported.
    yield from (
      pathlib.Path(parent, name)
      for name in files
      if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
      and not is_hidden(name)
    )
