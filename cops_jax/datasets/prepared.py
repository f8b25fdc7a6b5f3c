"""Reads prepared data sets and the record of their contents."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds

from cops_jax.datasets.further import PUBLISHED
from cops_jax.datasets.schema import Examples
from cops_jax.errors import InputError, WriteError
from cops_jax.files import digest_file, digest_lines, seal, unseal, write_file

_logger = logging.getLogger(__name__)

CONTENTS = "contents.json"


class PreparedExamples(Examples):
  """The undecoded examples of a prepared split, with images as bytes."""

  def __init__(
    self,
    builder: tfds.core.DatasetBuilder,
    split: str,
    contents: dict[str, Any],
  ):
    """Opens a split; `contents` is the result of `read_contents`."""
    skip = tfds.decode.SkipDecoding()
    self._source = builder.as_data_source(
      split, decoders={"image": skip, "mask": skip}
    )
    self.name, self._folder = builder.name, builder.data_dir
    self.identity, self.notes = str(builder.version), tuple(contents["notes"])
    self.is_published = self.name in PUBLISHED
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
    """Returns a SHA-256 of all shards of the split."""
    return self._sha256


def read_contents(
  builder: tfds.core.DatasetBuilder,
  notes: Sequence[str] = (),
  *,
  is_deep: bool = False,
) -> dict[str, Any]:
  """Reads contents.json and checks the files of a prepared data set against it.

  A shard is hashed once, and again if its size or time has changed. If
  contents.json is missing, damaged or has other times, it is rewritten.

  Args:
    notes: notes to record if contents.json is missing or damaged.
    is_deep: if True, hashes every file again.

  Returns:
    "files" with size, time and SHA-256 by file name, and "notes".

  Raises:
    InputError: if a file has changed since the data set was prepared.
  """
  folder = pathlib.Path(builder.data_dir)
  path = folder / CONTENTS
  contents = {"files": {}, "notes": list(notes)}
  try:
    saved = unseal(path.read_bytes())
    contents = {name: saved[name] for name in contents}
  except FileNotFoundError:
    pass
  except (OSError, ValueError, LookupError) as error:
    _logger.warning("%s is damaged (%s) and is rewritten", path, error)
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
      _logger.warning("cannot save the SHA-256 of the shards: %s", error)
  return contents


def _damaged(name, folder, reason):
  return InputError(
    f"the prepared data set {name!r} is damaged ({reason}). Delete {folder} to"
    " prepare it again."
  )
