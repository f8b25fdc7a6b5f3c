"""TFDS builders of the published and the generated data sets."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import pathlib
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import dataset_builder

from cops_jax.datasets import generated
from cops_jax.datasets.further import PUBLISHED, count_differences
from cops_jax.datasets.layouts import ListedImage
from cops_jax.datasets.schema import (
  EMPTY_MASK,
  DatasetInfo,
  example_features,
  file_example,
)
from cops_jax.datasets.specifications import SPECIFICATIONS, Specification
from cops_jax.errors import InputError, shorten
from cops_jax.images import masks
from cops_jax.images.decoding import open_image
from cops_jax.images.drawing import to_file
from cops_jax.paths import to_path
from cops_jax.progress import Progress

_logger = logging.getLogger(__name__)

_SHARD_BYTES = 256 << 20
_VISIBLE = 128


class Published(dataset_builder.ShardBasedBuilder, skip_registration=True):
  """Builds a published data set; images keep the bytes of their files.

  The stored order is that of the files, because TFDS's shuffling builder needs
  tensorflow for more than a gigabyte.
  """

  VERSION = tfds.core.Version("1.1.0")

  specification: Specification

  def __init__(self, *, file_format: Any = None, **kwargs: Any):
    # No other format works without tensorflow.
    super().__init__(file_format=file_format or "array_record", **kwargs)

  def _info(self) -> DatasetInfo:
    row = self.specification
    return DatasetInfo(
      builder=self,
      description=(
        f"{row.title}. {row.description} Licence: {row.licence}. Images are"
        " stored as the bytes of their files, and so are masks that are"
        " anomalous from grey 128 on; other masks become 0 and 255. Images"
        " without a mask have one of zeros."
      ),
      homepage=row.homepage,
      citation=row.citation,
      features=example_features(),
      license=row.licence,
    )

  def _shard_iterators_per_split(
    self, dl_manager: tfds.download.DownloadManager
  ) -> Mapping[str, Sequence[Callable[[], Iterator[Any]]]]:
    root = self._get_original_files(dl_manager)
    # All files are listed first, so that problems are found before writing.
    listing = self.specification.read(root, self.specification.categories)
    root = listing.root or root
    listing.require_no_problems(self.name)
    test = [row for row in listing.images if row.split == "test"]
    listing.oddities += count_differences(
      self.name, len(test), sum(row.is_anomaly for row in test)
    )
    self.notes, self.mask_notes = listing.notes, {}
    progress = Progress(len(listing.images), "images")
    num_done = 0

    def generate(images):
      nonlocal num_done
      for image in images:
        example = file_example(image, root, self.name)
        example["mask"], notes = _stored_mask(image, self.name)
        self.mask_notes[example["path"]] = "\n".join(notes)
        yield example["id"], example
        num_done += 1
        progress.update(num_done, f"preparing {self.name}")

    return {
      split: [functools.partial(generate, shard) for shard in shards]
      for split, shards in _shards(listing.images).items()
    }

  def find_original_files(self, manual_dir: Any = None) -> pathlib.Path | None:
    """Returns the folder of the original files, or None if there is none.

    Searches `manual_dir`, which is None for the default, then the downloads,
    then an installed package that contains the files.
    """
    downloads = pathlib.Path(self.data_dir_root) / "downloads"
    for parent in (manual_dir or downloads / "manual", downloads):
      root = to_path(parent) / self.name
      if root.is_dir():
        return root
    package = self.specification.package
    spec = importlib.util.find_spec(package) if package else None
    return pathlib.Path(spec.origin).parent if spec and spec.origin else None

  def _get_original_files(
    self, dl_manager: tfds.download.DownloadManager
  ) -> pathlib.Path:
    try:
      manual_dir = dl_manager.manual_dir
    except AssertionError:  # TFDS raises it if the folder is missing or empty.
      manual_dir = None
    root = self.find_original_files(manual_dir)
    if root:
      return root
    if self.specification.url:
      downloads = pathlib.Path(dl_manager.download_dir)
      return _download(self.specification, downloads / self.name)
    # Callers of tfds.data_source see this error too.
    raise InputError(
      f"data set {self.name!r} is not prepared in {self.data_dir_root}, and its"
      f" original files were not found: {self.MANUAL_DOWNLOAD_INSTRUCTIONS}"
    )


def _download(row: Specification, root: pathlib.Path) -> pathlib.Path:
  """Downloads and unpacks all files of a data set, or none of them."""
  import pooch

  partial = root.with_name(f".{root.name}.partial")
  shutil.rmtree(partial, ignore_errors=True)
  pooch.get_logger().setLevel(logging.WARNING)  # It repeats the next line.
  _logger.info("downloading %s to %s", row.url, root)
  try:
    pooch.retrieve(
      row.url,
      known_hash=f"sha256:{row.sha256}",
      path=root.parent,
      fname=f"{root.name}.tar",
      progressbar=True,
      processor=pooch.Untar(extract_dir=partial.name),
    )
    os.replace(partial, root)
    os.remove(f"{root}.tar")
  except (OSError, ValueError, tarfile.TarError) as error:
    raise InputError(
      f"cannot download {row.url} to {root}: {error}. Download it by other"
      f" means and unpack it to {root}."
    ) from error
  return root


def _stored_mask(
  listed: ListedImage, dataset: str
) -> tuple[pathlib.Path | bytes, Sequence[str]]:
  """Returns the mask to store, and notes on it.

  A file that is anomalous from grey 128 on is stored unchanged, any other mask
  as a new PNG. In the paper's data sets, soft edges are anomalous, because the
  authors' code and the published results count them.
  """
  path = listed.masks[0] if listed.masks else listed.image
  try:
    if not listed.masks:
      with open_image(path) as image:
        return _png(np.zeros(image.size[::-1], np.uint8)), ()
    mask = masks.read_mask(
      listed.masks, has_soft_edges=dataset not in SPECIFICATIONS
    )
    upright = mask.turn(1, mask.pixels.shape[::-1])
    notes = upright.fit(masks.RECIPES_SIDE).notes
    if len(listed.masks) == 1:
      with open_image(path) as image:
        is_visible = np.asarray(image.convert("L")) >= _VISIBLE
      if np.array_equal(is_visible, mask.pixels):
        return path, notes
    return _png(mask.pixels.astype(np.uint8) * 255), notes
  except Exception as error:  # PIL raises many kinds of errors.
    # Decoding the example reports or skips it. Several masks become empty
    # bytes, because the first of them may be intact.
    _logger.warning("%s cannot be read: %s", path, shorten(error))
    return (EMPTY_MASK, path, b"")[min(len(listed.masks), 2)], ()


def _shards(
  images: Sequence[ListedImage],
) -> dict[str, list[Sequence[ListedImage]]]:
  """Returns the images of each split in shards of about `_SHARD_BYTES`."""
  shards = {}
  for split in sorted({image.split for image in images}):
    shards[split] = [[]]
    num_bytes = 0
    for image in (image for image in images if image.split == split):
      if num_bytes > _SHARD_BYTES:
        shards[split].append([])
        num_bytes = 0
      shards[split][-1].append(image)
      num_bytes += image.image.stat().st_size
  return shards


def _png(array: np.ndarray) -> bytes:
  return to_file(Image.fromarray(array), "PNG", compress_level=1)


class _Demo(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Generates normal and defective images in the split `test`."""

  VERSION = tfds.core.Version("1.0.0")

  categories: Sequence[str]
  anomaly_kinds: Sequence[str]
  num_normal: int  # Images per category.
  num_of_each_kind: int  # Images per category and kind of anomaly.
  num_train: int = 0  # Normal images per category in the split `train`.

  def _info(self) -> DatasetInfo:
    return DatasetInfo(
      builder=self,
      description=(
        "Generated images of surfaces and objects, with defects and their"
        " masks. Created for this project; free to use."
      ),
      features=example_features(),
    )

  def _split_generators(self, dl_manager) -> dict[str, Any]:
    numbers = {"good": self.num_normal}
    numbers |= dict.fromkeys(self.anomaly_kinds, self.num_of_each_kind)
    splits = {"test": self._generate_examples("test", numbers)}
    if self.num_train:
      numbers = {"good": self.num_train}
      splits["train"] = self._generate_examples("train", numbers)
    return splits

  def _generate_examples(
    self, split: str, numbers: Mapping[str, int]
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    for category in self.categories:
      for kind, number in numbers.items():
        for index in range(number):
          example_id = f"{category}/{split}/{kind}/{index:03}"
          seed = zlib.crc32(f"{self.name}/{example_id}".encode())
          image, mask = generated.generate(
            category,
            None if kind == "good" else kind,
            np.random.default_rng(seed),
          )
          yield (
            example_id,
            {
              "image": _png(image),
              "mask": _png(mask.astype(np.uint8) * 255),
              "has_mask": True,
              "label": int(kind != "good"),
              "category": category,
              "anomaly_kind": kind,
              "dataset": self.name,
              "path": f"{example_id}.png",
              "id": example_id,
            },
          )


class DemoAuxiliary(_Demo):
  """Training data: six categories with the defect kinds seen in training."""

  name = "demo_auxiliary"
  categories = generated.TRAINING_CATEGORIES
  anomaly_kinds = tuple(generated.SEEN_DEFECTS)
  num_normal = 48
  num_of_each_kind = 4


class DemoUnseen(_Demo):
  """Evaluation data: six unseen categories and five additional defect kinds.

  The split `train` contains only normal images, for use as reference images.
  """

  VERSION = tfds.core.Version("1.1.0")

  name = "demo_unseen"
  categories = generated.EVALUATION_CATEGORIES
  anomaly_kinds = tuple(generated.DEFECTS)
  num_normal = 51
  num_of_each_kind = 3
  num_train = 8


# Each class registers itself with TFDS under its name.
BUILDERS = {
  row.name: type(
    "".join(part.capitalize() for part in row.name.split("_")),
    (Published,),
    {
      "name": row.name,
      "specification": row,
      "MANUAL_DOWNLOAD_INSTRUCTIONS": (
        f"pip install {row.package}, or "
        * bool(row.package)
        + f"get {row.title} from {row.homepage} and unpack it as the folder"
        f" {row.name} in manual_dir (by default downloads/manual in data_dir),"
        f" so that the folder contains {row.layout}"
      ),
      "__module__": __name__,
      "__doc__": f"{row.title}. {row.description}",
    },
  )
  for row in PUBLISHED.values()
}
# Worker processes unpickle the classes by their names in this module.
globals().update({cls.__name__: cls for cls in BUILDERS.values()})
BUILDERS |= {builder.name: builder for builder in (DemoAuxiliary, DemoUnseen)}
