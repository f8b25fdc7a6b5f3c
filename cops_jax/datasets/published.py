"""The one TFDS builder of all published data sets."""

from __future__ import annotations

import functools
import io
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import dataset_builder

from cops_jax.datasets.download import download
from cops_jax.datasets.layouts import Record
from cops_jax.datasets.schema import (
  EMPTY_MASK,
  DatasetInfo,
  example_features,
  file_example,
)
from cops_jax.datasets.specifications import (
  SPECIFICATIONS,
  Specification,
  bibtex,
  count_differences,
)
from cops_jax.errors import InputError, shorten
from cops_jax.images.decoding import open_image
from cops_jax.progress import Progress

_logger = logging.getLogger(__name__)

_SHARD_BYTES = 256 << 20
_VISIBLE = 128


class Published(dataset_builder.ShardBasedBuilder, skip_registration=True):
  """The original files of a published data set, bytes unchanged.

  Written shard by shard: TFDS's shuffling builder needs tensorflow from one
  gigabyte on. So the stored order is that of the files.
  """

  VERSION = tfds.core.Version("1.1.0")
  RELEASE_NOTES = {
    "1.0.0": "The first one.",
    "1.1.0": (
      "Masks of normal images have their image's size, and VisA's masks are 0"
      " and 255. Prepare the data set again, from its original files."
    ),
  }

  specification: Specification

  def __init__(self, *, file_format: Any = None, **kwargs: Any):
    # The one format that needs no tensorflow.
    super().__init__(file_format=file_format or "array_record", **kwargs)

  def _info(self) -> DatasetInfo:
    row = self.specification
    return DatasetInfo(
      builder=self,
      description=(
        f"{row.title}. {row.description} Licence: {row.licence}. Images are"
        " their files' bytes. Masks too, but for those whose highest value is"
        " below 128, which become 0 and 255; an image without one has one that"
        " is 0 throughout, of its size."
      ),
      homepage=row.homepage,
      citation=bibtex(row),
      features=example_features(),
      license=row.licence,
    )

  def _shard_iterators_per_split(
    self, dl_manager: tfds.download.DownloadManager
  ) -> Mapping[str, Sequence[Callable[[], Iterator[Any]]]]:
    root = self._get_original_files(dl_manager)
    # All of it is listed before anything is written.
    listing = self.specification.read(root, self.specification.categories)
    root = listing.root or root
    listing.require_sound(self.name)
    test = [row for row in listing.records if row.split == "test"]
    listing.oddities += count_differences(
      self.name, len(test), sum(row.is_anomaly for row in test)
    )
    listing.warn(self.name)
    self.oddities = listing.oddities  # Kept with the prepared data.
    progress = Progress(len(listing.records), "images")
    num_done = 0

    def generate(records):
      nonlocal num_done
      for record in records:
        example = file_example(record, root, self.name)
        example["mask"] = _stored_mask(record)
        yield example["id"], example
        num_done += 1
        progress.update(num_done, f"preparing {self.name}")

    return {
      split: [functools.partial(generate, shard) for shard in shards]
      for split, shards in _shards(listing.records).items()
    }

  def find_original_files(self, manual_dir: Any = None) -> pathlib.Path | None:
    """Their folder: in the manual directory, or where they were downloaded to.

    None if there is none. `manual_dir` as in `cops_jax.datasets.load`.
    """
    downloads = pathlib.Path(self.data_dir_root) / "downloads"
    for parent in (manual_dir or downloads / "manual", downloads):
      root = pathlib.Path(parent).expanduser() / self.name
      if root.is_dir():
        return root
    return None

  def _get_original_files(
    self, dl_manager: tfds.download.DownloadManager
  ) -> pathlib.Path:
    try:
      manual_dir = dl_manager.manual_dir
    except AssertionError:  # TFDS's, where that is missing or empty.
      manual_dir = None
    root = self.find_original_files(manual_dir)
    if root:
      return root
    if self.specification.archive:
      downloads = pathlib.Path(dl_manager.download_dir)
      return download(self.specification.archive, downloads / self.name)
    # Ends tfds.data_source too: all that is to be done, in one sentence.
    row = self.specification
    place = pathlib.Path(self.data_dir_root) / "downloads/manual" / self.name
    raise InputError(
      f"data set {self.name!r} is not prepared in {self.data_dir_root}, and its"
      f" original files are not there: get {row.title} from {row.homepage} and"
      f" unpack it as {place}, or as {self.name} in another manual_dir, so that"
      f" the folder holds {row.layout}"
    )


def _stored_mask(record: Record) -> pathlib.Path | bytes:
  """A mask's file where it is plain to see; else a PNG of 0 and 255."""
  path = record.image if record.mask is None else record.mask
  try:
    if record.mask is None:
      with open_image(record.image) as image:
        mask = Image.new("L", image.size)
    else:
      with open_image(record.mask) as image:
        values = np.asarray(image.convert("L"))
      if values.max() >= _VISIBLE:
        return record.mask
      mask = Image.fromarray((values > 0).astype(np.uint8) * 255)
  except Exception as error:  # PIL raises many kinds of errors.
    # Whoever decodes it says so, or leaves it out if that is wanted.
    _logger.warning("%s cannot be read: %s", path, shorten(error))
    return EMPTY_MASK if record.mask is None else record.mask
  file = io.BytesIO()
  mask.save(file, "PNG")
  return file.getvalue()


def _shards(
  records: Sequence[Record],
) -> dict[str, list[Sequence[Record]]]:
  """Records by split, cut where a shard's files have reached its size."""
  shards = {}
  for split in sorted({record.split for record in records}):
    shards[split] = [[]]
    num_bytes = 0
    for record in (record for record in records if record.split == split):
      if num_bytes > _SHARD_BYTES:
        shards[split].append([])
        num_bytes = 0
      shards[split][-1].append(record)
      num_bytes += record.image.stat().st_size
  return shards


# Each registers itself with TFDS under its name.
BUILDERS = {
  row.name: type(
    "".join(part.capitalize() for part in row.name.split("_")),
    (Published,),
    {
      "name": row.name,
      "specification": row,
      "MANUAL_DOWNLOAD_INSTRUCTIONS": (
        f"Get {row.title} from {row.homepage} and unpack it as the folder"
        f" {row.name} of the manual directory (manual_dir of the command or"
        " the config), so that the folder holds"
        f" {row.layout}."
      ),
      "__module__": __name__,
      "__doc__": f"{row.title}. {row.description}",
    },
  )
  for row in SPECIFICATIONS.values()
}
# Worker processes unpickle them by their names in this module.
globals().update({cls.__name__: cls for cls in BUILDERS.values()})
