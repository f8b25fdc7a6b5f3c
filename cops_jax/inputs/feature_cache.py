"""Reads and writes the feature cache, in shards of a few images each.

A shard is a NumPy file with the checksum and the features of each image. It is
written completely or not at all.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from cops_jax.errors import InputError, shorten

# Limits of a shard. An interruption loses at most one shard.
_SHARD_BYTES = 64 << 20
_SHARD_IMAGES = 16  # Processes can share a small data set.
_IS_STORED = 1 << 32  # A bit above those of a CRC-32.
# Fields of `pipeline.iterate_batches` that are stored after the features of an
# image, so that the image is not needed again.
_FACTS = np.dtype(
  [("orientation", "<i4"), ("size", "<i4", 2), ("notes", "S500")]
)


@dataclasses.dataclass(frozen=True)
class FeatureCache:
  """Features of the images of a data set, by position in the data set.

  It can be passed to worker processes.

  Attributes:
    folder: folder of the shards; can be missing.
    dtype: type of the stored features.
    image_shape: shape (d,) or (f, d) of the features of an image.
    patch_shape: shape (f, n, d) of the features of its patches.
    num_images: number of images in the data set.
  """

  folder: pathlib.Path
  dtype: str
  image_shape: tuple[int, ...]
  patch_shape: tuple[int, int, int]
  num_images: int

  @property
  def num_bytes(self) -> int:
    """Number of bytes stored for an image."""
    number = math.prod(self.image_shape) + math.prod(self.patch_shape)
    return number * jnp.dtype(self.dtype).itemsize + _FACTS.itemsize

  @property
  def shard_size(self) -> int:
    """Number of images in a shard; the last shard can have fewer."""
    return max(1, min(_SHARD_IMAGES, _SHARD_BYTES // self.num_bytes))

  def missing(self) -> list[int]:
    """Returns the positions of images without features.

    Raises:
      InputError: if a shard is damaged.
    """
    return [
      int(shard * self.shard_size + row)
      for shard in range(-(-self.num_images // self.shard_size))
      for row in np.flatnonzero(self._read(shard)[0] == 0)
    ]

  def find(self, index: int) -> dict[str, Any] | None:
    """Returns the features of the image at a position, or None if missing.

    The result has image_features and patch_features in the stored type, and
    orientation, size and notes as in `pipeline.iterate_batches`.

    Raises:
      InputError: if the features are damaged or belong to another image or
        cache.
    """
    shard, row = divmod(index, self.shard_size)
    checksums, features = self._read(shard, range(row, row + 1))
    if not checksums[row]:
      return None
    content = features.tobytes()
    if checksums[row] != self._checksum(index, content):
      raise self._damaged(shard, f"the checksum of image {index} differs")
    values = np.frombuffer(content[: -_FACTS.itemsize], jnp.dtype(self.dtype))
    image, patches = np.split(values, [math.prod(self.image_shape)])
    (facts,) = np.frombuffer(content[-_FACTS.itemsize :], _FACTS)
    return {
      "orientation": facts["orientation"],
      "size": facts["size"],
      "notes": np.str_(facts["notes"].decode(errors="ignore")),
      "image_features": image.reshape(self.image_shape),
      "patch_features": patches.reshape(self.patch_shape),
    }

  def padding(self) -> dict[str, Any]:
    """Returns the features of padding, which are ones and can be normalized."""
    dtype = jnp.dtype(self.dtype)
    return {
      "orientation": np.int32(1),
      "size": np.zeros(2, np.int32),
      "notes": np.str_(""),
      "image_features": np.ones(self.image_shape, dtype),
      "patch_features": np.ones(self.patch_shape, dtype),
    }

  def encode(
    self,
    image_features: np.ndarray,
    patch_features: np.ndarray,
    row: Mapping[str, Any],
  ) -> bytes:
    """Returns the bytes to store for an image.

    `row` has the other fields of the image, as in `pipeline.iterate_batches`.

    Raises:
      InputError: if a feature is not finite in the stored type.
    """
    path = row["path"]
    values = np.concatenate([image_features.ravel(), patch_features.ravel()])
    with np.errstate(over="ignore"):  # Overflows are found below.
      stored = values.astype(jnp.dtype(self.dtype))
    if not np.isfinite(values).all():
      raise InputError(
        f"the features of {path} contain NaN or infinity: the weights of the"
        " backbone are damaged"
      )
    if not np.isfinite(stored).all():
      raise InputError(
        f"the features of {path} reach {np.abs(values).max():.4g}, more than"
        f" {self.dtype} can hold. Set config.feature_cache.dtype to bfloat16 or"
        " float32."
      )
    notes = str(row["notes"]).encode()
    facts = np.array((row["orientation"], row["size"], notes), _FACTS)
    return stored.tobytes() + facts.tobytes()

  def add(self, features: Mapping[int, bytes], writer: str) -> None:
    """Adds features to a shard.

    Args:
      features: results of `encode` by position; all belong to one shard.
      writer: name of the writer; two must not write a shard at the same time.

    Raises:
      OSError: if the shard cannot be written.
      InputError: if the shard is damaged.
    """
    (shard,) = {index // self.shard_size for index in features}
    number = self._num_rows(shard)
    arrays = np.zeros((), self._layout(number))
    arrays["checksums"], arrays["features"] = self._read(shard, range(number))
    for index, content in features.items():
      row = index % self.shard_size
      arrays["features"][row] = np.frombuffer(content, np.uint8)
      arrays["checksums"][row] = self._checksum(index, content)
    partial = self.folder / f".{writer}.partial"
    with open(partial, "wb") as file:
      np.save(file, arrays)
      file.flush()
      os.fsync(file.fileno())
    os.replace(partial, self._path(shard))

  def _path(self, shard):
    return self.folder / f"{shard:06}.npy"

  def _num_rows(self, shard):
    return min(self.shard_size, self.num_images - shard * self.shard_size)

  def _layout(self, number):
    features = ("features", "u1", (number, self.num_bytes))
    return np.dtype([("checksums", "<u8", number), features])

  def _header(self, number):
    """Returns the first bytes of a shard, as `np.save` writes them.

    They are compared and not parsed, because Python 3.11's parser sometimes
    raises SystemError in one of several threads.
    """
    file, layout = io.BytesIO(), self._layout(number)
    descr = np.lib.format.dtype_to_descr(layout)
    header = {"descr": descr, "fortran_order": False, "shape": ()}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()

  def _read(self, shard, rows=range(0)):
    """Returns the checksums of a shard and the features of some rows.

    They are zeros if there is no file. The file is not memory-mapped, because
    truncating it would then end the process.
    """
    number = self._num_rows(shard)
    size = len(rows) * self.num_bytes
    checksums, features = bytes(8 * number), bytes(size)
    try:
      with open(self._path(shard), "rb") as file:
        header = self._header(number)
        if file.read(len(header)) != header:
          raise ValueError("its header belongs to other features")
        checksums = file.read(8 * number)
        file.seek(rows.start * self.num_bytes, os.SEEK_CUR)
        features = file.read(size)
        if len(checksums) < 8 * number or len(features) < size:
          raise ValueError("it is truncated")
    except (FileNotFoundError, NotADirectoryError):
      pass
    except (OSError, ValueError) as error:
      raise self._damaged(shard, error) from error
    return (
      np.frombuffer(checksums, "<u8"),
      np.frombuffer(features, np.uint8).reshape(len(rows), self.num_bytes),
    )

  def _checksum(self, index, content):
    place = zlib.crc32(f"{self.folder.name}/{index}".encode())
    return _IS_STORED + zlib.crc32(content, place)

  def _damaged(self, shard, reason):
    return InputError(
      f"the cached features in {self._path(shard)} are damaged"
      f" ({shorten(reason)}). Delete that file to compute its features again."
    )
