"""The examples of a prepared data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

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
  ):
    self.name, self._folder, self._source = name, folder, source
    self.identity, self.notes = version, tuple(notes)
    self._digests = digests or {}
    self.is_published = name in SPECIFICATIONS

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


def open_split(
  builder: tfds.core.DatasetBuilder,
  split: str,
  digests: Mapping[str, str] | None = None,
  notes: Sequence[str] = (),
) -> PreparedExamples:
  """Opens a prepared split.

  Args:
    builder: of the data set.
    split: its name.
    digests, notes: see `contents`.
  """
  skip = tfds.decode.SkipDecoding()
  source = builder.as_data_source(split, decoders={"image": skip, "mask": skip})
  return PreparedExamples(
    builder.name,
    str(builder.version),
    builder.data_dir,
    source,
    digests,
    notes,
  )
