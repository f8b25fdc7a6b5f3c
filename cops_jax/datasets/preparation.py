"""Preparing data sets with TFDS, and reading what is prepared."""

from __future__ import annotations

import contextlib
import io
import logging
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import filelock
import tensorflow_datasets as tfds

from cops_jax.errors import InputError

_logger = logging.getLogger(__name__)


class PreparedExamples(Sequence):
  """A prepared split: dicts of undecoded examples, images as files' bytes."""

  def __init__(
    self,
    name: str,
    version: str,
    folder: str,
    source: Sequence,
    num_bytes: int = 0,
  ):
    self.name, self._folder, self._source = name, folder, source
    self.identity, self._num_bytes = version, num_bytes

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    if not 0 <= index < len(self):
      raise IndexError(index)
    try:
      example = self._source[index]
    except Exception as error:  # ArrayRecord's errors are not documented.
      raise InputError(
        f"prepared data set {self.name!r} is damaged at record {index}"
        f" ({error}). Delete {self._folder}; it is then prepared again."
      ) from error
    return {
      name: value.decode()
      if isinstance(value, bytes) and name not in ("image", "mask")
      else value
      for name, value in example.items()
    }

  def fingerprint(self) -> str:
    """Changes with the version and with the size of what was prepared."""
    return f"{self.identity}, {self._num_bytes} bytes"


def make_builder(
  name: str, data_dir: str | None = None
) -> tfds.core.DatasetBuilder:
  """The builder of a registered data set."""
  return tfds.builder(name, data_dir=data_dir, file_format="array_record")


def is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
  """Whether its data are there: TFDS moves a finished data set into place."""
  return builder.data_path.exists()


def why_unprepared(
  name: str, data_dir: str | None = None, manual_dir: str | None = None
) -> str:
  """Why a published data set cannot be read at once; "" if it can.

  It can if it is prepared or its original files are there. Arguments as in
  `prepare`.
  """
  builder = make_builder(name, data_dir)
  if is_prepared(builder) or builder.find_original_files(manual_dir):
    return ""
  command = f"python -m cops_jax.datasets prepare {name} --manual_dir=DIR"
  others = _other_versions(builder)
  if others:
    return f"{others}. Prepare it again with: {command}"
  return f"not prepared in {builder.data_dir_root}. Prepare it with: {command}"


def _other_versions(builder):
  folder = pathlib.Path(builder.data_path)
  versions = [path.name for path in folder.parent.glob("[0-9]*.[0-9]*.[0-9]*")]
  if not versions:
    return ""
  return (
    f"{folder.parent} holds version {', '.join(sorted(versions))} of it, and"
    f" version {folder.name} is needed"
  )


def prepare(
  name: str, data_dir: str | None = None, manual_dir: str | None = None
) -> tfds.core.DatasetBuilder:
  """Prepares a data set, unless that has been done before.

  Several processes may call it at once: one prepares and the others wait. What
  an interrupted one left is removed.

  Args:
    name: of a registered data set.
    data_dir: where TFDS keeps prepared data; None for TFDS's default.
    manual_dir: where the original files are, a folder of its name for each
      data set; None for downloads/manual in data_dir.

  Returns:
    Its builder.

  Raises:
    InputError: original files are missing or not as expected, or data_dir
      cannot be written.
  """
  builder = make_builder(name, data_dir)
  if is_prepared(builder):
    return builder
  home = pathlib.Path(builder.data_path).parent
  try:
    home.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(home / ".lock"):
      if is_prepared(builder):
        return make_builder(name, data_dir)
      for leftover in home.glob("incomplete.*"):
        shutil.rmtree(leftover)
      if others := _other_versions(builder):
        _logger.warning("data set %s is prepared again: %s", name, others)
      _logger.info("preparing data set %s in %s", name, builder.data_dir)
      tfds.disable_progress_bar()
      # TFDS announces itself on standard output, where results are printed.
      with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(
          download_config=tfds.download.DownloadConfig(manual_dir=manual_dir)
        )
  except OSError as error:
    raise InputError(
      f"data set {name!r} cannot be prepared in {home}: {error}"
    ) from error
  return builder


def prepare_and_count(
  name: str, data_dir: str | None, manual_dir: str | None
) -> dict[str, int]:
  """Prepares a data set and counts its images by split; see `prepare`."""
  splits = prepare(name, data_dir, manual_dir).info.splits
  return {split: info.num_examples for split, info in splits.items()}


def load_prepared(
  name: str, split: str, data_dir: str | None, manual_dir: str | None
) -> PreparedExamples:
  """A split of a registered data set, prepared first if necessary.

  Raises:
    InputError: as `prepare`; or there is no such split.
  """
  builder = prepare(name, data_dir, manual_dir)
  if split not in builder.info.splits:
    raise InputError(
      f"data set {name!r} has no split {split!r}; it has:"
      f" {', '.join(sorted(builder.info.splits))}"
    )
  skip = tfds.decode.SkipDecoding()
  source = builder.as_data_source(split, decoders={"image": skip, "mask": skip})
  return PreparedExamples(
    name,
    str(builder.version),
    builder.data_dir,
    source,
    builder.info.splits[split].num_bytes,
  )
