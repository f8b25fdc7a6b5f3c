"""The inputs of a step: batches of images or of cached features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def load_examples(
  config: Any, name: str, split: str
) -> Sequence[Mapping[str, Any]]:
  """Calls `datasets.load` with the folders that a config names.

  Raises:
    InputError: see `datasets.load`.
  """
  from cops_jax import datasets  # With TFDS, which is slow to import.

  return datasets.load(
    name,
    split,
    config.data_dir or None,
    config.manual_dir or None,
    config.input.compare_bytes,
  )


def describe_data(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns what the processes of a job compare of a data set, by name."""
  return {
    f"number of images of {examples.name!r}": len(examples),
    f"SHA-256 of {examples.name!r} (see config.input.compare_bytes)": (
      examples.fingerprint()
    ),
  }
