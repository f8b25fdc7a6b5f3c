"""Fills and opens the feature cache.

The backbone is frozen, so the features of an image that is not augmented never
change. A cache is a folder named after the hash of its `manifest.json`, which
contains everything that the features depend on. Missing features are computed
whenever a cache is opened.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cops_jax.backbones.features import ENCODE_FIELDS, encode_batch
from cops_jax.errors import InputError, WriteError
from cops_jax.files import file_state, to_json, write_file
from cops_jax.inputs import pipeline
from cops_jax.inputs.feature_cache import FeatureCache
from cops_jax.paths import require_local, to_path
from cops_jax.progress import Progress, gigabytes
from cops_jax.runtime.mesh import jit_step, make_mesh, run_ahead, shard_batch
from cops_jax.runtime.processes import in_all_processes
from cops_jax.tables import count_of
from cops_jax.weights.backbone import PretrainedBackbone
from cops_jax.weights.model import place_backbone

_logger = logging.getLogger(__name__)

# Increase it with any change of the stored values or their layout, such as in
# the decoding of images, the vision tower or the shards.
_VERSION = 5


def features_folder(config: Any) -> pathlib.Path:
  """Returns the folder of all caches, by default `features` in data_dir.

  Raises:
    InputError: if it is an address in object storage.
  """
  folder = config.features_dir
  if not folder:
    import tensorflow_datasets as tfds

    data_dir = config.data_dir or tfds.core.constants.DATA_DIR
    folder = os.path.join(data_dir, "features")
  require_local(folder, "the folder of cached features, config.features_dir,")
  return to_path(folder)


def open_features(
  config: Any,
  examples: Sequence[Mapping[str, Any]],
  split: str,
  model: nn.Module,
  backbone: PretrainedBackbone,
  mesh: Mesh,
  *,
  batch_size: int,
  skipped: MutableMapping[str, str] | None = None,
) -> FeatureCache | None:
  """Opens the feature cache of a data set and computes missing features.

  All processes of a cluster must call this. Those that share the folder compute
  a part each; a process with its own folder computes all. Runs take turns.
  Returns None if the config disables the cache.

  Args:
    config, examples, split: config of the run, and a split of a data set.
    model, backbone: model with the vision tower, and its weights.
    mesh, batch_size: devices and batch size of the run. A device computes as
      many images at a time as in a step; in float32, the last bits depend on
      that number, so it is part of the cache's key.
    skipped: argument of `pipeline.iterate_batches`.

  Raises:
    InputError: if an image cannot be read, the cache is damaged or does not fit
      on the disk, or a feature is not finite in the stored type.
  """
  dtype = config.feature_cache.dtype
  if dtype == "none":
    return None
  device_size = pipeline.num_batches(batch_size, mesh.size)
  states = _file_states(examples)
  text = _manifest(config, examples, split, model, backbone, device_size)
  key = hashlib.sha256(text.encode()).hexdigest()[:16]
  local_mesh = make_mesh(jax.local_devices())
  options = pipeline.make_options(
    config, backbone, local_mesh, device_size * local_mesh.size
  )
  num_layers = len(config.model.feature_layers)
  width = model.backbone.feature_width
  num_patches = (options.image_size // options.patch_size) ** 2
  folder = features_folder(config) / f"{examples.name}-{key}"
  cache = FeatureCache(
    folder,
    dtype,
    image_shape=(num_layers, width) if model.has_layer_tokens else (width,),
    patch_shape=(num_layers, num_patches, width),
    num_images=len(examples),
  )
  # Compile once, and only if there is an image to encode.
  make_encode = functools.cache(
    lambda: _make_encode(config, model, backbone, local_mesh)
  )

  def begin():
    if missing := cache.missing():
      write_file(folder / "manifest.json", text)
      _require_space(cache, len(missing), examples.name)
    else:
      _logger.info("reading features of %s from %s", examples.name, folder)

  def fill(turns):
    for turn in turns if cache.missing() else ():
      part = (jax.process_index() + turn) % jax.process_count()
      _fill(cache, examples, states, part, options, make_encode, skipped)

  try:
    in_all_processes(begin)
    in_all_processes(fill, range(1))
    # Processes that share the folder have computed the other parts by now.
    in_all_processes(fill, range(1, jax.process_count()))
  except (OSError, WriteError) as error:
    raise InputError(
      f"features cannot be saved in {folder}: {error}. Saved ones are kept. Set"
      " config.features_dir to another folder or config.feature_cache.dtype to"
      " none."
    ) from error
  return cache


def _file_states(examples):
  """Returns sizes and times of image files; None for a prepared data set."""
  if isinstance(examples[0]["image"], bytes):
    return None
  return [file_state(example["image"]) for example in examples]


def _manifest(config, examples, split, model, backbone, device_size):
  """Returns everything that the stored values depend on, as text."""
  manifest = {
    "version": _VERSION,
    "dataset": {
      "name": examples.name,
      "identity": examples.identity,
      "split": split,
      "sha256": examples.fingerprint(),
    },
    "backbone": {
      "sha256": backbone.sha256,
      "config": json.loads(backbone.config.to_json_string()),
      "dtype": jnp.dtype(model.backbone.dtype).name,
      "feature_width": model.backbone.feature_width,
    },
    "has_layer_tokens": model.has_layer_tokens,
    "image_size_pixels": config.model.image_size_pixels,
    "bits_per_channel": config.input.bits_per_channel,
    "feature_layers": list(config.model.feature_layers),
    "num_value_layers": config.model.num_value_layers,
    "stored_as": config.feature_cache.dtype,
    "backend": jax.default_backend(),
    "matmul_precision": jax.config.jax_default_matmul_precision,
  }
  if config.feature_cache.dtype == "float32":
    manifest["images_per_device"] = device_size
  return to_json(manifest, indent=2, sort_keys=True) + "\n"


def _require_space(cache, number, name):
  needed = number * cache.num_bytes
  free = shutil.disk_usage(cache.folder).free
  text = (
    f"the features of {count_of(number, 'image')} of {name} need"
    f" {gigabytes(needed)} as {cache.dtype}, and {cache.folder} has"
    f" {gigabytes(free)} free"
  )
  _logger.info("%s", text)
  if needed > free:
    raise InputError(
      f"{text}. Free disk space, or set config.features_dir to another folder"
      " or config.feature_cache.dtype to a smaller type or none."
    )


def _fill(cache, examples, states, part, options, make_encode, skipped):
  """Computes missing features in the shards of a part, under its lock."""
  count, size = jax.process_count(), cache.shard_size
  writer = f"{part + 1}-of-{count}"
  with _acquire(cache.folder, writer):
    missing = [
      index for index in cache.missing() if index // size % count == part
    ]
    if not missing:
      return
    batches = pipeline.iterate_batches(
      pipeline.Subset(examples, missing),
      options,
      options.one_pass(len(missing)),
      skipped=skipped,
    )
    message = f"computing features of {examples.name}"
    if count > 1:
      message += f", part {part + 1} of {count}"
    progress = Progress(len(missing), "images")
    ready, num_done = {}, 0
    try:
      for batch, outputs in run_ahead(batches, make_encode()):
        for row in np.flatnonzero(batch["padding_mask"]):
          index = missing[batch["index"][row]]
          if states and states[index] != file_state(examples[index]["image"]):
            raise InputError(
              f"{batch['path'][row]} of data set {examples.name!r} has changed"
              " since the start. Run the same command again."
            )
          if ready and index // size > max(ready) // size:
            cache.add(ready, writer)
            ready = {}
          ready[index] = cache.encode(
            *(array[row] for array in outputs),
            {name: values[row] for name, values in batch.items()},
          )
          num_done += 1
        progress.update(num_done, message)
    finally:  # Finished features are saved even if an image cannot be read.
      if ready:
        cache.add(ready, writer)


def _acquire(folder, writer):
  """Acquires the lock on the shards of a part; `with` releases it."""
  import filelock

  lock = filelock.FileLock(folder / f".{writer}.lock")
  try:
    return lock.acquire(blocking=False)
  except filelock.Timeout:
    _logger.info(
      "waiting for another process that computes features in %s", folder
    )
    return lock.acquire()


def _make_encode(config, model, backbone, mesh):
  """Returns a function that computes the features of a batch."""
  backbone_params, shardings = place_backbone(
    backbone, model, mesh, config.backbone.split_over_devices
  )

  def encode(backbone_params, batch):
    return encode_batch(model, backbone_params, batch)

  step = jit_step(encode, mesh, shardings, num_replicated=0)
  return lambda batch: step(
    backbone_params, shard_batch(batch, mesh, ENCODE_FIELDS)
  )
