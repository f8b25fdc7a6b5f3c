"""Prepares data sets with TFDS and loads them."""

from __future__ import annotations

import contextlib
import io
import logging
import pathlib
import shutil

import filelock
import tensorflow_datasets as tfds

from cops_jax.datasets.prepared import PreparedExamples, read_contents
from cops_jax.errors import InputError, shorten
from cops_jax.paths import require_local
from cops_jax.tables import count_notes

_logger = logging.getLogger(__name__)


def make_builder(
  name: str, data_dir: str | None = None
) -> tfds.core.DatasetBuilder:
  """Returns the TFDS builder of a registered data set.

  Raises:
    InputError: if TFDS's description of the prepared data set is damaged, or
      data_dir is an address in object storage.
  """
  if data_dir:
    require_local(data_dir, "the folder of prepared data, data_dir,")
  try:
    return tfds.builder(name, data_dir=data_dir, file_format="array_record")
  except Exception as error:  # TFDS's parsers raise many kinds of errors.
    folder = pathlib.Path(data_dir or tfds.core.constants.DATA_DIR) / name
    raise InputError(
      f"the prepared data set {name!r} in {folder} is damaged"
      f" ({shorten(error)}). Delete the folder to prepare it again."
    ) from error


def why_unprepared(
  name: str, data_dir: str | None = None, manual_dir: str | None = None
) -> str:
  """Returns why a published data set cannot be read, or an empty string.

  A data set can be read if it is prepared or its original files exist.
  """
  builder = make_builder(name, data_dir)
  if builder.data_path.exists() or builder.find_original_files(manual_dir):
    return ""
  reason = f"not prepared in {data_dir or builder.data_dir_root}"
  command = "cops datasets prepare --all --manual_dir=DIR"
  if data_dir:
    command += f" --data_dir={data_dir}"
  # The same text for all data sets, so that they can share one message.
  return f"{reason}. Put the original files in DIR and run: {command}"


def prepare(
  name: str, data_dir: str | None = None, manual_dir: str | None = None
) -> tfds.core.DatasetBuilder:
  """Prepares a data set if it is not prepared yet.

  If several processes call this at once, one prepares the data set and the rest
  wait. TFDS moves a finished data set into place; leftovers of an interrupted
  call are removed. The arguments are those of `cops_jax.datasets.load`.

  Returns:
    The builder of the data set.

  Raises:
    InputError: if original files are missing or not as expected, or data_dir
      cannot be written.
  """
  try:
    import array_record  # noqa: F401
  except ImportError as error:
    raise InputError(
      f"data set {name!r} needs the package array_record, which is not"
      " installed and does not exist for Windows. Use Linux, macOS or WSL, or"
      " read the images from their folder with folder:PATH."
    ) from error
  if manual_dir:
    require_local(manual_dir, "the folder of original files, manual_dir,")
  builder = make_builder(name, data_dir)
  if builder.data_path.exists():
    return builder
  home = pathlib.Path(builder.data_path).parent
  try:
    home.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(home / ".lock"):
      if builder.data_path.exists():
        return make_builder(name, data_dir)
      for leftover in home.glob("incomplete.*"):
        shutil.rmtree(leftover)
      _logger.info("preparing data set %s in %s", name, builder.data_dir)
      tfds.disable_progress_bar()
      # TFDS prints to standard output, which is for results.
      with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(
          download_config=tfds.download.DownloadConfig(manual_dir=manual_dir)
        )
      notes = count_notes(getattr(builder, "mask_notes", {}))
      for note in notes:
        _logger.warning("data set %s: %s", name, note)
      read_contents(builder, [*getattr(builder, "notes", ()), *notes])
  except OSError as error:
    raise InputError(
      f"data set {name!r} cannot be prepared in {home}:"
      f" {error.strerror or error}. Choose another folder with --data_dir=DIR"
      " or --config.data_dir=DIR"
    ) from error
  return builder


def load_prepared(
  name: str, split: str, data_dir: str | None, manual_dir: str | None
) -> PreparedExamples:
  """Opens a split of a registered data set, which is prepared if necessary."""
  builder = prepare(name, data_dir, manual_dir)
  contents = read_contents(builder)
  if split not in builder.info.splits:
    raise InputError(
      f"data set {name!r} has no split {split!r}; it has:"
      f" {', '.join(sorted(builder.info.splits))}"
    )
  return PreparedExamples(builder, split, contents)
