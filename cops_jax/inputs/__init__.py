"""Inputs of a step: batches of images or of cached features."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from cops_jax.errors import InputError


def load_examples(
  config: Any, name: str, split: str
) -> Sequence[Mapping[str, Any]]:
  """Opens a split of a data set, with the folders in a config.

  Raises:
    InputError: if `datasets.load` raises it, or config.input.num_workers is too
      high for this machine.
  """
  workers, most = config.input.num_workers, 4 * (os.cpu_count() or 1)
  if workers > most:
    raise InputError(
      f"config.input.num_workers is {workers}, but must be at most {most}, four"
      " for each of this machine's cores"
    )
  from cops_jax import datasets  # With TFDS, which is slow to import.

  return datasets.load(
    name,
    split,
    config.data_dir or None,
    config.manual_dir or None,
    config.input.compare_bytes,
  )


def describe_data(
  examples: Sequence[Mapping[str, Any]], fingerprint: str
) -> dict[str, Any]:
  """Returns the facts about a data set that all processes must share."""
  name = repr(examples.name)
  return {
    f"number of images of {name}": len(examples),
    f"SHA-256 of {name} (see config.input.compare_bytes)": fingerprint,
  }
