"""Data sets by name: `load` gives their examples."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cops_jax.errors import InputError

_logger = logging.getLogger(__name__)

# The module that registers a TFDS builder of each name.
BUILDERS = {
  "demo_auxiliary": "cops_jax.datasets.demo.builder",
  "demo_unseen": "cops_jax.datasets.demo.builder",
  "mvtec_ad": "cops_jax.datasets.published",
  "visa": "cops_jax.datasets.published",
}


class Examples(Sequence):
  """A prepared split: dicts of undecoded examples.

  Each has image and mask (a file's bytes), has_mask, label (0 normal, 1
  anomaly), category, anomaly_kind, dataset, path and id.
  """

  def __init__(self, source: Sequence[Mapping[str, Any]]):
    self._source = source

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return {
      name: value.decode()
      if isinstance(value, bytes) and name not in ("image", "mask")
      else value
      for name, value in self._source[index].items()
    }

  def __iter__(self) -> Iterator[dict[str, Any]]:
    return (self[index] for index in range(len(self)))


def load(
  name: str,
  split: str,
  data_dir: str | None = None,
  manual_dir: str | None = None,
) -> Examples:
  """Opens a data set's split, preparing the data set the first time.

  Args:
    name: a key of `BUILDERS`.
    split: "test", which has anomalies, or "train" where there is one.
    data_dir: where TFDS keeps prepared data; None for TFDS's default.
    manual_dir: where the original files lie, a folder of its name for each
      data set; None for downloads/manual in data_dir.

  Raises:
    InputError: unknown name or split, no examples in it, or original files
      that are needed and missing or not as expected.
  """
  if name not in BUILDERS:
    raise InputError(
      f"unknown data set {name!r}; known are: {', '.join(sorted(BUILDERS))}"
    )
  import tensorflow_datasets as tfds

  importlib.import_module(BUILDERS[name])
  builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
  # TFDS moves a finished data set there; its own test for it logs a warning.
  if not builder.data_path.exists():
    _logger.info("preparing data set %s in %s", name, builder.data_dir)
    tfds.disable_progress_bar()
    # TFDS announces itself on standard output, where results are printed.
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=manual_dir)
      )
  if split not in builder.info.splits:
    raise InputError(
      f"data set {name!r} has no split {split!r}; it has:"
      f" {', '.join(sorted(builder.info.splits))}"
    )
  skip = tfds.decode.SkipDecoding()
  examples = Examples(
    builder.as_data_source(split, decoders={"image": skip, "mask": skip})
  )
  if not len(examples):
    raise InputError(f"split {split!r} of data set {name!r} has no images")
  return examples
