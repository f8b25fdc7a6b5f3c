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
