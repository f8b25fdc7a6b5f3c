"""Prepared data sets: their examples, and what they were when prepared."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds

from cops_jax.datasets.specifications import SPECIFICATIONS
from cops_jax.errors import InputError, WriteError
from cops_jax.files import (
  digest_file,
  digest_lines,
  file_state,
  seal,
  unseal,
  write_file,
)

_logger = logging.getLogger(__name__)

CONTENTS = "contents.json"
_FIELDS = {"files", "notes", "originals"}


class PreparedExamples(Sequence):
  """A prepared split: dicts of undecoded examples, images as files' bytes."""

  def __init__(
    self,
    builder: tfds.core.DatasetBuilder,
    split: str,
    contents: dict[str, Any],
  ):
    """Opens the split.

    Args:
      builder: of the data set.
      split: its name.
      contents: from `read_contents`.
    """
    skip = tfds.decode.SkipDecoding()
    self._source = builder.as_data_source(
      split, decoders={"image": skip, "mask": skip}
    )
    self.name, self._folder = builder.name, builder.data_dir
    self.identity, self.notes = str(builder.version), tuple(contents["notes"])
    self.is_published = self.name in SPECIFICATIONS
    shards = sorted(builder.info.splits[split].filenames)
    self._sha256 = digest_lines(contents["files"][name][2] for name in shards)

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    if not 0 <= index < len(self):
      raise IndexError(index)
    try:
      example = self._source[index]
    except Exception as error:  # ArrayRecord's errors are not documented.
      raise _damaged(
        self.name, self._folder, f"record {index}: {error}"
      ) from error
    return {
      name: value.decode()
      if isinstance(value, bytes) and name not in ("image", "mask")
      else value
      for name, value in example.items()
    }

  def fingerprint(self) -> str:
    """Returns one SHA-256 of all the split's shards."""
    return self._sha256


def state_of_originals(
  builder: tfds.core.DatasetBuilder, manual_dir: str | None
) -> str:
  """Returns a SHA-256 of the original files' names, sizes and times.

  It is an empty string if the files are not there.
  """
  find = getattr(builder, "find_original_files", None)
  root = find and find(manual_dir)
  if not root:
    return ""
  return digest_lines(
    f"{path.relative_to(root)} {file_state(path)}"
    for path in sorted(root.rglob("*"))
    if path.is_file() and not path.name.startswith(".")
  )


def read_contents(
  builder: tfds.core.DatasetBuilder,
  notes: Sequence[str] = (),
  originals: str = "",
  *,
  is_deep: bool = False,
) -> dict[str, Any]:
  """Reads contents.json, and checks the data's files against it.

  A shard is read once, and again if its size or time has changed. The file is
  written if it is missing or damaged, or if the times have changed.

  Args:
    builder: of a prepared data set.
    notes, originals: to record where nothing is recorded yet; `originals` is
      from `state_of_originals`.
    is_deep: whether to read every file again.

  Returns:
    Size, time and SHA-256 of the "files" by name, "notes" and "originals".

  Raises:
    InputError: a file has changed since the data set was prepared.
  """
  folder = pathlib.Path(builder.data_dir)
  path = folder / CONTENTS
  contents = {"files": {}, "notes": list(notes), "originals": originals}
  try:
    saved = unseal(path.read_bytes())
    if saved.keys() != _FIELDS:
      raise ValueError(f"it has the fields {', '.join(saved)}")
    contents = saved
  except FileNotFoundError:
    pass
  except (OSError, ValueError) as error:
    _logger.warning("%s is damaged (%s): it is written again", path, error)
  known, files = contents["files"], {}
  shards = {
    name for info in builder.info.splits.values() for name in info.filenames
  }
  for name in ("dataset_info.json", "features.json", *sorted(shards)):
    try:
      stat = (folder / name).stat()
    except OSError as error:
      raise _damaged(builder.name, folder, error) from error
    state = [stat.st_size, stat.st_mtime_ns]
    is_known = name in shards and known.get(name, [])[:2] == state
    if is_known and not is_deep:
      files[name] = known[name]
    else:
      files[name] = [*state, digest_file(folder / name)]
    if known and files[name][2] != known.get(name, [""])[-1]:
      raise _damaged(builder.name, folder, f"{name} has another SHA-256")
  if files != known:
    contents["files"] = files
    try:
      write_file(path, seal(contents))
    except WriteError as error:
      _logger.warning("the shards' SHA-256 are not kept: %s", error)
  return contents


def _damaged(name, folder, reason):
  return InputError(
    f"prepared data set {name!r} is damaged ({reason}). Delete {folder}; it is"
    " then prepared again."
  )
