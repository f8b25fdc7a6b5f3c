"""A cache of vision features on disk: ArrayRecord files in a folder.

A file's first record names the examples of its other records, each with the
state of the image file that was seen, so that the features of a file that has
changed are never used. Files are written whole or not at all.
"""

from __future__ import annotations

import json
import os
import secrets
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from cops_jax import buckets, copies
from cops_jax.digests import file_state
from cops_jax.errors import InputError, shorten
from cops_jax.paths import AnyPath, is_address


def num_record_bytes(shape: tuple[int, int, int], dtype: str | np.dtype) -> int:
  """Bytes of an image's features.

  Args:
    shape: (f, n, d) of its patch features.
    dtype: of the stored features.
  """
  layers, patches, width = shape
  return (1 + layers * patches) * width * jnp.dtype(dtype).itemsize


class FeatureCache:
  """The features of a data set's images, by example.

  It can be passed to worker processes.

  Attributes:
    home: where they are.
    folder: from which they are read: the same, or a copy of a bucket's.
  """

  def __init__(self, home: AnyPath, dtype: str, shape: tuple[int, int, int]):
    """Opens a cache and reads its index.

    Args:
      home: may be empty or not exist.
      dtype: of the stored features.
      shape: (f, n, d) of an image's patch features.

    Raises:
      InputError: a file is damaged or not this cache's.
    """
    self.home, self._dtype, self._shape = home, jnp.dtype(dtype), shape
    self.folder = copies.place_of(home) if is_address(home) else home
    self._files = {}
    self._places = {}
    self.refresh()

  def __len__(self) -> int:
    return len(self._places)

  def refresh(self) -> None:
    """Reads the index of the files that other processes have added since.

    Raises:
      InputError: one is damaged or not this cache's, or cannot be copied.
    """
    if is_address(self.home):
      copies.fetch(self.home, must_exist=False)
    for path in sorted(self.folder.glob("*.array_record")):
      if path not in self._files:
        self._open(path)

  @property
  def num_record_bytes(self) -> int:
    """Bytes of an image's features."""
    return num_record_bytes(self._shape, self._dtype)

  def _open(self, path):
    from array_record.python.array_record_data_source import (
      ArrayRecordDataSource,
    )

    try:
      # Opened again in every process, and only when it is read.
      records = ArrayRecordDataSource(str(path))
      index = json.loads(records[0])
      cache, names = index["cache"], index["names"]
    except Exception as error:  # ArrayRecord's errors are not documented.
      raise self._damaged(path, error) from error
    if cache != self.folder.name or len(records) != 1 + len(names):
      raise self._damaged(
        path,
        f"it says that it holds {len(names)} images of {cache}, and has"
        f" {len(records) - 1}",
      )
    self._files[path] = records
    for number, name in enumerate(names, start=1):
      self._places[name] = path, number

  def _damaged(self, path, reason):
    return InputError(
      f"the cached features in {self.home / path.name} are damaged"
      f" ({shorten(reason)}). Delete that file; its features are then computed"
      " again."
    )

  def find(self, example: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
    """An example's features, in the stored type.

    Returns:
      image_features (d,) and patch_features (f, n, d); None if the cache has
      none of the example's image in its present state.

    Raises:
      InputError: they are damaged.
    """
    place = self._places.get(_stored_name(example))
    if place is None:
      return None
    path, number = place
    try:
      record = self._files[path][number]
    except Exception as error:  # ArrayRecord's errors are not documented.
      raise self._damaged(path, error) from error
    if len(record) != self.num_record_bytes:
      raise self._damaged(path, f"record {number} has {len(record)} bytes")
    rows = np.frombuffer(record, self._dtype).reshape(-1, self._shape[-1])
    return {
      "image_features": rows[0],
      "patch_features": rows[1:].reshape(self._shape),
    }

  def to_record(
    self,
    image_features: np.ndarray,
    patch_features: np.ndarray,
    path: str,
  ) -> bytes:
    """The bytes to store; the inverse of what `find` does.

    Raises:
      InputError: a feature is not a finite number of the stored type; names the
        image's path.
    """
    rows = np.concatenate(
      [image_features[None], patch_features.reshape(-1, self._shape[-1])]
    )
    with np.errstate(over="ignore"):  # It is noticed below.
      stored = rows.astype(self._dtype)
    if not np.isfinite(rows).all():
      raise InputError(
        f"the features of {path} are not all numbers: the CLIP weights are"
        " damaged"
      )
    if not np.isfinite(stored).all():
      raise InputError(
        f"the features of {path} reach {np.abs(rows).max():.4g}, more than"
        f" {self._dtype} holds. Set config.feature_cache.dtype to bfloat16 or"
        " float32."
      )
    return stored.tobytes()

  def padding(self) -> dict[str, np.ndarray]:
    """What fills a batch; not zeros, as features are divided by their norm."""
    return {
      "image_features": np.ones(self._shape[-1], self._dtype),
      "patch_features": np.ones(self._shape, self._dtype),
    }

  def missing(self, examples: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Positions and stored names of the examples that have no features yet.

    Reads the size and time of every file. Prepared data are read only if
    there are fewer features than examples.
    """
    if isinstance(examples[0]["image"], bytes) and len(self) >= len(examples):
      return {}
    names = {
      index: _stored_name(examples[index]) for index in range(len(examples))
    }
    return {
      index: name for index, name in names.items() if name not in self._places
    }

  def add(self, features: Mapping[str, bytes], prefix: str) -> None:
    """Writes records of features, by stored name, as one file.

    Args:
      features: the bytes of `to_record`.
      prefix: of the file's name; processes that write at the same time have
        different ones.

    Raises:
      InputError: they cannot be written.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    numbers = (
      int(path.stem.removeprefix(prefix).partition("-")[0])
      for path in self._files
      if path.name.startswith(prefix)
    )
    number = max(numbers, default=0) + 1
    # In a bucket nobody waits for those who fill the cache on other hosts.
    mark = f"-{secrets.token_hex(4)}" if is_address(self.home) else ""
    path = self.folder / f"{prefix}{number:05}{mark}.array_record"
    partial = self.folder / f"{prefix}partial"
    index = {"cache": self.folder.name, "names": list(features)}
    try:
      # Records of their own, for random access. Compression gains little on
      # such numbers.
      writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
      for record in (json.dumps(index).encode(), *features.values()):
        writer.write(record)
      writer.close()
      if is_address(self.home):
        buckets.upload(partial, self.home / path.name)
      os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # RuntimeError is ArrayRecord's.
      partial.unlink(missing_ok=True)
      raise InputError(
        f"cannot write features in {self.home}: {shorten(error)}. What was"
        " written before is kept; the same command goes on from there."
      ) from error
    self._open(path)


def _stored_name(example):
  """An example's id and what tells whether its image has changed."""
  image = example["image"]
  if isinstance(image, bytes):
    state = f"{len(image)} {zlib.crc32(image):08x}"
  else:
    state = file_state(image)
  return f"{example['id']} {state}"
