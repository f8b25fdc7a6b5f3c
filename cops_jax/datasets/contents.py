"""What tells prepared data from others: contents.json, kept beside them."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds

from cops_jax.datasets.prepared import open_split
from cops_jax.digests import combine, digest_example, file_state
from cops_jax.errors import InputError
from cops_jax.files import digest_file, seal, unseal, write_file
from cops_jax.progress import Progress

_logger = logging.getLogger(__name__)

CONTENTS = "contents.json"
_FIELDS = {"files", "splits", "notes", "originals"}


def compute_digests(
  builder: tfds.core.DatasetBuilder, split: str
) -> dict[str, str]:
  """Each example's digest by id; reads all of a prepared split.

  Raises:
    InputError: a record is damaged.
  """
  examples = open_split(builder, split)
  progress = Progress(len(examples), "images")
  digests = {}
  for number, example in enumerate(examples, start=1):
    files = (digest_file(example[name]) for name in ("image", "mask"))
    digests[example["id"]] = digest_example(example, *files)
    progress.update(number, f"reading {builder.name} once")
  return digests


def state_of_originals(
  builder: tfds.core.DatasetBuilder, manual_dir: str | None
) -> str:
  """Of the sizes and times of all original files; "" if they are not there."""
  find = getattr(builder, "find_original_files", None)
  root = find and find(manual_dir)
  if not root:
    return ""
  return combine(
    {
      str(path.relative_to(root)): file_state(path)
      for path in root.rglob("*")
      if path.is_file() and not path.name.startswith(".")
    }
  )


def read_contents(
  builder: tfds.core.DatasetBuilder,
  notes: Sequence[str] = (),
  originals: str = "",
) -> dict[str, Any]:
  """What contents.json holds; made anew where the data's files are others.

  Args:
    builder: of a data set that is prepared here.
    notes: taken while preparing, if that was now.
    originals: `state_of_originals` then.

  Returns:
    Sizes, times and digests of the "files" by name; digests of the examples by
    id for each of the "splits"; the "notes" and the state of the "originals".

  Raises:
    InputError: a record is damaged.
  """
  folder = pathlib.Path(builder.data_dir)
  path = folder / CONTENTS
  try:
    contents = _unseal_contents(path)
    if _are_same(folder, contents["files"]):
      return contents
    _logger.warning("%s is not of the files beside it: computed anew", path)
    notes, originals = contents["notes"], contents["originals"]
  except FileNotFoundError:
    pass
  except (OSError, ValueError) as error:
    _logger.warning("%s is damaged (%s): computed anew", path, error)
  contents = {
    "files": {
      name: [*state, digest_file(folder / name)]
      for name, state in _file_states(folder).items()
    },
    "splits": {
      split: compute_digests(builder, split) for split in builder.info.splits
    },
    "notes": list(notes),
    "originals": originals,
  }
  try:
    write_file(path, seal(contents))
  except InputError as error:
    _logger.warning("what tells these data from others is not kept: %s", error)
  return contents


def _unseal_contents(path):
  contents = unseal(path.read_bytes())
  if contents.keys() != _FIELDS:
    raise ValueError(f"it has the fields {', '.join(contents)}")
  return contents


def _file_states(folder):
  """Sizes and times of a prepared data set's files, by name."""
  return {
    file.name: [file.stat().st_size, file.stat().st_mtime_ns]
    for file in sorted(folder.iterdir())
    if file.is_file() and file.name != CONTENTS
  }


def _are_same(folder, files):
  """Whether files are as `read_contents` saw them, there or where they were.

  Copies have other times. They are read once, and then get the same.
  """
  now = _file_states(folder)
  seen = {name: row[:2] for name, row in files.items()}
  if now == seen:
    return True
  moved = [name for name in now if now[name] != seen.get(name)]
  if now.keys() != seen.keys() or not all(
    len(files[name]) > 2 and digest_file(folder / name) == files[name][2]
    for name in moved
  ):
    return False
  for name in moved:
    with contextlib.suppress(OSError):  # Then they are read every time.
      os.utime(folder / name, ns=(files[name][1], files[name][1]))
  return True
