"""Examples and cached features, from the folders that a config names."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import flax.linen as nn
from jax.sharding import Mesh

from cops_jax.config import max_pixels
from cops_jax.inputs import feature_cache
from cops_jax.inputs.feature_files import FeatureCache
from cops_jax.weights.clip import PretrainedCLIP


def load_examples(
  config: Any, name: str, split: str
) -> Sequence[Mapping[str, Any]]:
  """`datasets.load` with the folders that a config names.

  Args:
    config: a ConfigDict with the fields of `cops_jax.config`.
    name, split: see `datasets.load`.

  Raises:
    InputError: see `datasets.load`.
  """
  from cops_jax import datasets

  return datasets.load(
    name,
    split,
    config.data_dir or None,
    config.manual_dir or None,
    config.input.compare_bytes,
  )


def features_of(
  config: Any,
  examples: Sequence[Mapping[str, Any]],
  split: str,
  model: nn.Module,
  clip: PretrainedCLIP,
  mesh: Mesh,
  *,
  batch_size: int,
  skipped: MutableMapping[str, str] | None,
) -> FeatureCache | None:
  """A data set's cached features; missing ones are computed.

  All processes of a cluster call it.

  Args:
    config: a ConfigDict with the fields of `cops_jax.config`.
    examples, split, model, clip, mesh, batch_size, skipped: see
      `feature_cache.open_features`.

  Returns:
    None if the config wants no cache.

  Raises:
    InputError: see `feature_cache.open_features`.
  """
  dtype = config.feature_cache.dtype
  if dtype == "none":
    return None
  return feature_cache.open_features(
    examples,
    split,
    model,
    clip,
    mesh,
    feature_cache.CacheOptions(
      dtype=dtype,
      folder=config.features_dir
      or feature_cache.default_folder(config.data_dir or None),
      image_size=config.model.image_size_pixels,
      batch_size=batch_size,
      split_clip=config.clip.split_over_devices,
      num_workers=config.input.num_workers,
      max_pixels=max_pixels(config),
    ),
    skipped,
  )
