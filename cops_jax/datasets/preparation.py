"""Preparing data sets with TFDS, and loading them."""

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
  """Returns the builder of a registered data set.

  Raises:
    InputError: TFDS's description of the prepared data set is damaged, or
      data_dir is an address in object storage.
  """
  if data_dir:
    require_local(data_dir, "the folder of prepared data, data_dir,")
  try:
    return tfds.builder(name, data_dir=data_dir, file_format="array_record")
  except Exception as error:  # TFDS's parsers raise many kinds.
    folder = pathlib.Path(data_dir or tfds.core.constants.DATA_DIR) / name
    raise InputError(
      f"the prepared copy of data set {name!r} in {folder} is damaged"
      f" ({shorten(error)}). Delete it; it is then prepared again."
    ) from error


def why_unprepared(
  name: str, data_dir: str | None = None, manual_dir: str | None = None
) -> str:
  """Returns why a published data set cannot be read; an empty string if it can.

  It can if it is prepared or its original files are there. Arguments as in
  `prepare`.
  """
  builder = make_builder(name, data_dir)
  if builder.data_path.exists() or builder.find_original_files(manual_dir):
    return ""
  reason = f"not prepared in {data_dir or builder.data_dir_root}"
  command = "cops datasets prepare --all --manual_dir=DIR"
  if data_dir:
    command += f" --data_dir={data_dir}"
  # The same words for all, so that they can be said once.
  return f"{reason}. With the original files in DIR, prepare with: {command}"


def prepare(
  name: str, data_dir: str | None = None, manual_dir: str | None = None
) -> tfds.core.DatasetBuilder:
  """Prepares a data set, unless that has been done before.

  Several processes may call it at once: one prepares and the others wait. TFDS
  moves a finished data set into place; the rest of an interrupted call is
  removed.

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
  try:
    import array_record  # noqa: F401
  except ImportError as error:
    raise InputError(
      f"data set {name!r} is kept in ArrayRecord files, and the package"
      " array_record is not installed; Windows has none. Use Linux, macOS or"
      " WSL, or read the images from their folder: folder:PATH"
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
      # TFDS announces itself on standard output, where results are printed.
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
      f" {error.strerror or error}. Choose another folder with data_dir, as by"
      " --config.data_dir=DIR"
    ) from error
  return builder


def load_prepared(
  name: str, split: str, data_dir: str | None, manual_dir: str | None
) -> PreparedExamples:
  """Opens a split of a registered data set, prepared first if necessary.

  Args:
    name, data_dir, manual_dir: see `prepare`.
    split: its name.

  Raises:
    InputError: as `prepare`; or there is no such split.
  """
  builder = prepare(name, data_dir, manual_dir)
  contents = read_contents(builder)
  if split not in builder.info.splits:
    raise InputError(
      f"data set {name!r} has no split {split!r}; it has:"
      f" {', '.join(sorted(builder.info.splits))}"
    )
  return PreparedExamples(builder, split, contents)
