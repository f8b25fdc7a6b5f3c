"""Frozen vision features, computed once and kept on disk.

Training has no augmentation and CLIP is frozen, so what the vision tower gives
for an image never changes. A cache is a folder: `manifest.json` says, readably,
all that its values depend on, and a hash of that is part of the folder's name.
What is missing is computed at the next start.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import shutil
from collections.abc import (
  Callable,
  Iterator,
  Mapping,
  MutableMapping,
  Sequence,
)
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding

from cops_jax.clip.features import ENCODE_FIELDS, encode_batch, join_params
from cops_jax.errors import InputError, WriteError
from cops_jax.files import read_file, write_file
from cops_jax.images.decoding import MAX_PIXELS
from cops_jax.inputs import pipeline
from cops_jax.inputs.feature_files import FeatureCache
from cops_jax.paths import AnyPath, is_address, to_path
from cops_jax.progress import Progress, gigabytes
from cops_jax.runtime.mesh import (
  jit_step,
  make_mesh,
  run_ahead,
  shard_batch,
)
from cops_jax.runtime.processes import in_all_processes
from cops_jax.weights.clip import PretrainedCLIP
from cops_jax.weights.model import place_clip

_logger = logging.getLogger(__name__)

# To be increased with any change to the stored values or their layout: in the
# decoding of images, the vision tower, this module.
_VERSION = 1
_FILE_BYTES = 64 << 20  # What an interruption loses at most.


def default_folder(data_dir: str | None) -> AnyPath:
  """Where caches are kept: beside the prepared data sets.

  Args:
    data_dir: where TFDS keeps prepared data; None for TFDS's default.
  """
  import tensorflow_datasets as tfds

  folder = data_dir or tfds.core.constants.DATA_DIR
  return to_path(folder) / "features"


@dataclasses.dataclass(frozen=True)
class CacheOptions:
  """How features are computed and kept.

  Attributes:
    dtype: to store them in, see `config.FEATURE_TYPES`. With "float32" the
      number of images at a time is part of the cache's key.
    folder: of all caches.
    image_size: pixels.
    batch_size: of the run's steps.
    split_clip: whether each of this process's devices holds only a part of
      CLIP's parameters.
    num_workers: processes that decode images.
    max_pixels: of an image file.
  """

  dtype: str
  folder: str | os.PathLike
  image_size: int
  batch_size: int
  split_clip: bool = False
  num_workers: int = 0
  max_pixels: int = MAX_PIXELS


def open_features(
  examples: Sequence[Mapping[str, Any]],
  split: str,
  model: nn.Module,
  clip: PretrainedCLIP,
  mesh: Mesh,
  options: CacheOptions,
  skipped: MutableMapping[str, str] | None = None,
) -> FeatureCache:
  """Opens the cache of a data set's features, and computes what is missing.

  Processes of a cluster that share the folder share the work: each computes its
  part on its own devices, and then waits for the other parts. Those that do not
  share it compute all. Separate runs wait for each other. Features in a bucket
  are sent there by the process that computes them, and read from a copy on each
  host. All processes of a cluster call it.

  Args:
    examples, split: from `cops_jax.datasets.load`.
    model, clip: the vision tower.
    mesh: of the run. Each of its devices gets as many images at a time as in
      the run's own steps: the last bits depend on that number.
    options: how to compute and keep them.
    skipped: see `pipeline.iterate_batches`.

  Raises:
    InputError: an image cannot be read; the cache is damaged, stale or does not
      fit the disk; a feature is not a finite number of that type.
  """
  device_size = pipeline.num_batches(options.batch_size, mesh.size)
  manifest = _manifest(examples, split, model, clip, options)
  if options.dtype == "float32":
    manifest["images_per_device"] = device_size
  text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
  key = hashlib.sha256(text.encode()).hexdigest()[:16]
  folder = to_path(options.folder) / f"{examples.name}-{key}"
  if not is_address(folder):
    folder = folder.expanduser()
  patch_size = clip.config.vision_config.patch_size
  num_patches = (options.image_size // patch_size) ** 2
  shape = (
    len(model.config.model.feature_layers),
    num_patches,
    clip.config.projection_dim,
  )

  def open_cache():
    _require_same(folder / "manifest.json", manifest)
    return FeatureCache(folder, options.dtype, shape)

  cache = in_all_processes(open_cache)
  missing = in_all_processes(cache.missing, examples)
  if not missing:
    _logger.info("features of %s are read from %s", examples.name, folder)
  filling = _Filling(
    cache,
    examples,
    pipeline.BatchOptions(
      options.image_size,
      patch_size,
      batch_size=device_size * jax.local_device_count(),
      num_devices=jax.local_device_count(),
      num_workers=options.num_workers,
      max_pixels=options.max_pixels,
    ),
    lambda: _make_local_encode(model, clip, options.split_clip),
    skipped,
  )
  _fill_together(filling, missing, text, options.dtype)
  return cache


def _manifest(examples, split, model, clip, options):
  """All that the stored values depend on."""
  vision = clip.config.vision_config
  return {
    "version": _VERSION,
    "dataset": {
      "name": examples.name,
      "identity": examples.identity,
      "split": split,
    },
    "clip": {
      "sha256": clip.sha256,
      # The rest of the tower's architecture can be seen in the weights.
      "patch_size": vision.patch_size,
      "num_attention_heads": vision.num_attention_heads,
      "hidden_act": vision.hidden_act,
      "layer_norm_eps": vision.layer_norm_eps,
      "dtype": jnp.dtype(model.clip.dtype).name,
    },
    "image_size_pixels": options.image_size,
    "feature_layers": list(model.config.model.feature_layers),
    "num_value_layers": model.config.model.num_value_layers,
    "stored_as": options.dtype,
    "backend": jax.default_backend(),
    "matmul_precision": jax.config.jax_default_matmul_precision,
  }


def _require_same(path, manifest):
  try:
    saved = json.loads(read_file(path))
  except (FileNotFoundError, NotADirectoryError):
    return
  except (OSError, ValueError) as error:
    saved = {"manifest": f"unreadable ({error})"}
  if not isinstance(saved, dict):
    saved = {"manifest": saved}
  differences = [
    f"{name} is {saved.get(name)!r} there and {manifest.get(name)!r} here"
    for name in sorted(saved.keys() | manifest.keys())
    if saved.get(name) != manifest.get(name)
  ]
  if differences:
    raise InputError(
      f"the cached features in {path.parent} are stale: by {path.name},"
      f" {'; '.join(differences)}. Delete that folder; they are then computed"
      " again."
    )


@contextlib.contextmanager
def _lock(folder, prefix) -> Iterator[None]:
  import filelock

  lock = filelock.FileLock(folder / f"{prefix}lock")
  try:
    held = lock.acquire(blocking=False)
  except filelock.Timeout:
    _logger.info("waiting for another process that fills %s", folder)
    held = lock.acquire()
  with held:
    yield


def _require_space(cache, number, name, dtype):
  needed = number * cache.num_record_bytes
  free = shutil.disk_usage(cache.folder).free
  _logger.info(
    "caching the features of %d images of %s in %s: %s as %s, of %s free",
    number,
    name,
    cache.folder,
    gigabytes(needed),
    dtype,
    gigabytes(free),
  )
  if needed > free:
    raise InputError(
      f"the features of {number} images of {name} need {gigabytes(needed)} as"
      f" {dtype}, and {cache.folder} has {gigabytes(free)} free. Make room, or"
      " set config.features_dir to another place or config.feature_cache.dtype"
      " to a smaller type or none."
    )


def make_encode_step(
  model: nn.Module,
  mesh: Mesh,
  clip_shardings: Sharding | Mapping[str, Any] | None = None,
) -> Callable[
  [Mapping[str, Any], Mapping[str, jax.Array]], tuple[jax.Array, jax.Array]
]:
  """Compiles the vision tower's step.

  Args:
    model: a method's.
    mesh: to split batches over.
    clip_shardings: of CLIP's parameters; None if every device has a copy.

  Returns:
    `encode(clip_params, batch)`, giving what `encode_batch` does.
  """

  def encode(clip_params, batch):
    return encode_batch(model, join_params({}, clip_params), batch)

  return jit_step(encode, mesh, clip_shardings, num_replicated=0)


def _make_local_encode(model, clip, split_clip):
  """From a batch on the host to its features, on this process's devices."""
  mesh = make_mesh(jax.local_devices())
  clip_params, shardings = place_clip(clip, model, mesh, split_clip)
  encode = make_encode_step(model, mesh, shardings)
  return lambda batch: encode(
    clip_params, shard_batch(batch, mesh, ENCODE_FIELDS)
  )


@dataclasses.dataclass
class _Filling:
  """Computes what a cache lacks, part by part."""

  cache: FeatureCache
  examples: Sequence[Mapping[str, Any]]
  batches: pipeline.BatchOptions
  make_encode: Callable[[], Callable[[Mapping[str, Any]], Any]]
  skipped: MutableMapping[str, str] | None

  @functools.cached_property
  def _encode(self):
    return self.make_encode()  # Once, and only if there is something to encode.

  def fill(self, part: int) -> None:
    """Computes what is missing of a part, alone."""
    cache, examples = self.cache, self.examples
    count = jax.process_count()
    prefix = f"{part + 1}-of-{count}-"
    with _lock(cache.folder, prefix):
      cache.refresh()
      missing = {
        index: name
        for index, name in cache.missing(examples).items()
        if index % count == part
      }
      if not missing:
        return
      message = f"computing features of {examples.name}" + (
        f", part {part + 1} of {count}" if count > 1 else ""
      )
      batches = pipeline.iterate_batches(
        pipeline.Subset(examples, tuple(missing)),
        self.batches,
        self.batches.one_pass(len(missing)),
        skipped=self.skipped,
      )
      encoded = run_ahead(batches, self._encode)
      _store(cache, tuple(missing.values()), encoded, prefix, message)


def _fill_together(filling, missing, manifest, dtype):
  """Each process computes its part, and then what the others have not."""
  cache, examples = filling.cache, filling.examples

  def begin():
    if missing:
      write_file(cache.home / "manifest.json", manifest)
      cache.folder.mkdir(parents=True, exist_ok=True)
      _require_space(cache, len(missing), examples.name, dtype)
      filling.fill(jax.process_index())

  def end():
    if not missing or jax.process_count() == 1:
      return
    # What other processes computed is there by now, if they share the folder.
    cache.refresh()
    if cache.missing(examples):
      for turn in range(1, jax.process_count()):
        filling.fill((jax.process_index() + turn) % jax.process_count())

  for stage in (begin, end):
    try:
      in_all_processes(stage)
    except (OSError, WriteError) as error:
      raise InputError(
        f"features cannot be kept in {cache.home}: {error}. Choose another"
        " place with config.features_dir, or set config.feature_cache.dtype to"
        " none."
      ) from error


def _store(cache, names, encoded, prefix, message):
  """Writes batches' features, a file at a time, by the rows' stored names."""
  progress = Progress(len(names), "images")
  ready = {}
  num_done = 0
  try:
    for batch, outputs in encoded:
      for row in np.flatnonzero(batch["padding_mask"]):
        # The name as it was before the file was read.
        ready[names[batch["index"][row]]] = cache.to_record(
          *(array[row] for array in outputs), str(batch["path"][row])
        )
        num_done += 1
        if len(ready) * cache.num_record_bytes >= _FILE_BYTES:
          cache.add(ready, prefix)
          ready = {}
      progress.update(num_done, message)
  finally:  # An image that cannot be read loses no finished work.
    if ready:
      cache.add(ready, prefix)
