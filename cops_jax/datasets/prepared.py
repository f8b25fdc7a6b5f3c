"""The examples of a prepared data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from cops_jax.datasets.shards import Shards
from cops_jax.datasets.specifications import SPECIFICATIONS
from cops_jax.errors import InputError


class PreparedExamples(Sequence):
  """A prepared split: dicts of undecoded examples, images as files' bytes."""

  def __init__(
    self,
    name: str,
    version: str,
    folder: str,
    source: Sequence,
    digests: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    shard_lengths: Sequence[int] = (),
    shards: Shards | None = None,
  ):
    self.name, self._folder, self._source = name, folder, source
    self.identity, self.notes = version, tuple(notes)
    self._digests = digests or {}
    self.is_published = name in SPECIFICATIONS
    self.shard_lengths, self._shards = tuple(shard_lengths), shards

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    if not 0 <= index < len(self):
      raise IndexError(index)
    try:
      example = self._source[index]
    except InputError:
      raise
    except Exception as error:  # ArrayRecord's errors are not documented.
      raise InputError(
        f"prepared data set {self.name!r} is damaged at record {index}"
        f" ({error}). Delete {self._folder}; it is then prepared, or copied,"
        " again."
      ) from error
    return {
      name: value.decode()
      if isinstance(value, bytes) and name not in ("image", "mask")
      else value
      for name, value in example.items()
    }

  def digests(self) -> dict[str, str]:
    """By id, what changes with an example's bytes and what is known of it."""
    return dict(self._digests)

  @property
  def is_read_by_shards(self) -> bool:
    """Whether they are copied when they are needed: `expect_shards` helps."""
    return self._shards is not None

  def expect_shards(self, numbers: tuple[int, ...]) -> None:
    """Says which shards are needed soon, those needed first before others."""
    if self._shards:
      self._shards.expect(numbers)

  def require_room(self, window_shards: int) -> None:
    """Checks that two windows of shards may be kept; 0 for all shards.

    Raises:
      InputError: they may not.
    """
    if self._shards:
      self._shards.require_room(
        2 * window_shards or len(self.shard_lengths),
        "training with config.input.shuffle_window_shards"
        f" {window_shards or '0 (all together)'}",
        ", or shuffle fewer together",
      )


def open_split(
  builder: tfds.core.DatasetBuilder,
  split: str,
  digests: Mapping[str, str] | None = None,
  notes: Sequence[str] = (),
  shards: Shards | None = None,
) -> PreparedExamples:
  """The examples of a prepared split.

  Args:
    builder: of the data set.
    split: its name.
    digests, notes: see `contents`.
    shards: that are copied as they are needed; None if all are here.
  """
  skip = tfds.decode.SkipDecoding()
  source = builder.as_data_source(split, decoders={"image": skip, "mask": skip})
  if shards:
    source.data_source = shards
  return PreparedExamples(
    builder.name,
    str(builder.version),
    str(shards.folder) if shards else builder.data_dir,
    source,
    digests,
    notes,
    [part.take for part in builder.info.splits[split].file_instructions],
    shards,
  )
