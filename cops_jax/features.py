"""Frozen vision features, computed once and kept on disk.

Training has no augmentation and CLIP is frozen, so what the vision tower says
of an image never changes. A cache is a folder: `manifest.json` says, readably,
all that its values depend on, and a hash of that is part of the folder's name.
ArrayRecord files hold the features. A file's first record names the examples of
its other records, each with the state of the image file that was seen, so that
the features of a file that has changed are never used. Files are written whole
or not at all; what is missing is computed at the next start.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import shutil
import zlib
from collections.abc import (
  Callable,
  Iterator,
  Mapping,
  MutableMapping,
  Sequence,
)
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cops_jax import input_pipeline, sharding
from cops_jax.clip_files import PretrainedCLIP
from cops_jax.errors import InputError, shorten
from cops_jax.files import write_file
from cops_jax.models.clip import normalize_images
from cops_jax.models.cops import CoPS, join_params
from cops_jax.progress import Progress

_logger = logging.getLogger(__name__)

# Values of config.train.cache_features.
STORAGE_TYPES = ("none", "float32", "bfloat16", "float16")

# Raised by whatever changes the stored values or their layout: the decoding of
# images, the vision tower, this module.
_VERSION = 1
_FILE_BYTES = 64 << 20  # What an interruption loses at most.


def default_folder(data_dir: str | None) -> pathlib.Path:
  """Where caches are kept: beside the prepared data sets.

  Args:
    data_dir: where TFDS keeps prepared data; None for TFDS's default.
  """
  import tensorflow_datasets as tfds

  folder = data_dir or tfds.core.constants.DATA_DIR
  return pathlib.Path(folder).expanduser() / "features"


class FeatureCache:
  """The features of a data set's images, by example.

  Worker processes can be given it.

  Attributes:
    folder: where they are.
  """

  def __init__(
    self, folder: pathlib.Path, dtype: str, shape: tuple[int, int, int]
  ):
    """Opens a cache and reads its index.

    Args:
      folder: may be empty or not exist.
      dtype: of the stored features.
      shape: (f, n, d) of an image's patch features.

    Raises:
      InputError: a file is damaged or not this cache's.
    """
    self.folder, self._dtype, self._shape = folder, jnp.dtype(dtype), shape
    self._files = {}
    self._places = {}
    for path in sorted(folder.glob("*.array_record")):
      self._open(path)

  def __len__(self) -> int:
    return len(self._places)

  @property
  def num_record_bytes(self) -> int:
    """Bytes of an image's features."""
    layers, patches, width = self._shape
    return (1 + layers * patches) * width * self._dtype.itemsize

  def _open(self, path):
    from array_record.python.array_record_data_source import (
      ArrayRecordDataSource,
    )

    try:
      # Opened again in every process, and only when it is read.
      records = ArrayRecordDataSource(str(path))
      index = json.loads(records[0])
      cache, names = index["cache"], index["names"]
    except Exception as error:  # ArrayRecord's kinds are not documented.
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
      f"the cached features in {path} are damaged ({shorten(reason)}). Delete"
      " that file; its features are then computed anew."
    )

  def find(self, example: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
    """An example's features, in the stored type.

    Returns:
      image_features (d,) and patch_features (f, n, d); None if the cache has
      none of the example's image, as it is now.

    Raises:
      InputError: they are damaged.
    """
    place = self._places.get(_stored_name(example))
    if place is None:
      return None
    path, number = place
    try:
      record = self._files[path][number]
    except Exception as error:  # ArrayRecord's kinds are not documented.
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
      InputError: a feature is no finite number of the stored type; names the
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
        f" {self._dtype} holds. Set config.train.cache_features to bfloat16 or"
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

    Files are all asked for their size and time. Prepared data are read only if
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

  def add(self, features: Mapping[str, bytes]) -> None:
    """Writes records of features, by stored name, as one file.

    Raises:
      InputError: they cannot be written.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    number = max((int(path.stem) for path in self._files), default=0) + 1
    path = self.folder / f"{number:05}.array_record"
    partial = self.folder / "partial"
    index = {"cache": self.folder.name, "names": list(features)}
    try:
      # Records of their own, for random access. Compression gains little on
      # such numbers.
      writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
      for record in (json.dumps(index).encode(), *features.values()):
        writer.write(record)
      writer.close()
      os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # RuntimeError is ArrayRecord's.
      partial.unlink(missing_ok=True)
      raise InputError(
        f"cannot write features in {self.folder}: {shorten(error)}. What was"
        " written before is kept; the same command goes on from there."
      ) from error
    self._open(path)


def _stored_name(example):
  """An example's id and what tells whether its image has changed."""
  image = example["image"]
  if isinstance(image, bytes):
    state = f"{len(image)} {zlib.crc32(image):08x}"
  else:
    try:
      stat = os.stat(image)
      state = f"{stat.st_size} {stat.st_mtime_ns}"
    except OSError:  # Decoding it says what is wrong.
      state = "unreadable"
  return f"{example['id']} {state}"


class _Selection(Sequence):
  """Some of a data set's examples; worker processes can be given it."""

  def __init__(self, examples, indices):
    self._examples, self._indices = examples, indices

  def __len__(self):
    return len(self._indices)

  def __getitem__(self, index):
    return self._examples[self._indices[index]]


def open_features(
  examples: Sequence[Mapping[str, Any]],
  split: str,
  model: CoPS,
  clip: PretrainedCLIP,
  mesh: Mesh,
  *,
  dtype: str,
  folder: str | os.PathLike,
  image_size: int,
  batch_size: int,
  num_workers: int = 0,
  skipped: MutableMapping[str, str] | None = None,
) -> FeatureCache:
  """Opens the cache of a data set's features, and computes what is missing.

  Each process opens it by itself. Of those that find the same features missing
  on a shared disk, one computes them and the others wait.

  Args:
    examples, split: from `cops_jax.datasets.load`.
    model, clip: the vision tower.
    mesh: of the run. Each of its devices gets as many images at a time as in
      the run's own steps: the last bits depend on that number.
    dtype: to store them in, see `STORAGE_TYPES`. With "float32" the number of
      images at a time is part of what makes a cache another one.
    folder: of all caches.
    image_size: pixels.
    batch_size: of the run's steps.
    num_workers, skipped: see `input_pipeline.iterate_batches`.

  Raises:
    InputError: an image cannot be read; the cache is damaged, stale or does not
      fit the disk; a feature is no finite number of that type.
  """
  device_size = input_pipeline.num_batches(batch_size, mesh.size)
  manifest = _manifest(examples, split, model, clip, dtype, image_size)
  if dtype == "float32":
    manifest["images_per_device"] = device_size
  text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
  key = hashlib.sha256(text.encode()).hexdigest()[:16]
  folder = pathlib.Path(folder).expanduser() / f"{examples.name}-{key}"
  side = image_size // clip.config.vision_config.patch_size
  shape = (len(model.feature_layers), side**2, clip.config.projection_dim)

  _require_same(folder / "manifest.json", manifest)
  cache = FeatureCache(folder, dtype, shape)
  if not cache.missing(examples):
    _logger.info("features of %s are read from %s", examples.name, folder)
    return cache
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
      write_file(folder / "manifest.json", text)
      cache = FeatureCache(folder, dtype, shape)
      missing = cache.missing(examples)
      _require_space(cache, len(missing), examples.name, dtype)
      _fill(
        cache,
        _Selection(examples, tuple(missing)),
        tuple(missing.values()),
        model,
        clip,
        device_size,
        f"computing features of {examples.name}",
        image_size=image_size,
        num_workers=num_workers,
        skipped=skipped,
      )
  except OSError as error:
    raise InputError(
      f"features cannot be kept in {folder}: {error}. Choose another place with"
      " config.features_dir, or set config.train.cache_features to none."
    ) from error
  return cache


def _manifest(examples, split, model, clip, dtype, image_size):
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
      "dtype": jnp.dtype(model.dtype).name,
    },
    "image_size_pixels": image_size,
    "feature_layers": list(model.feature_layers),
    "num_value_layers": model.num_value_layers,
    "stored_as": dtype,
    "backend": jax.default_backend(),
    "matmul_precision": jax.config.jax_default_matmul_precision,
  }


def _require_same(path, manifest):
  try:
    saved = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
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
      " anew."
    )


@contextlib.contextmanager
def _lock(folder) -> Iterator[None]:
  import filelock

  lock = filelock.FileLock(folder / ".lock")
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
    _gigabytes(needed),
    dtype,
    _gigabytes(free),
  )
  if needed > free:
    raise InputError(
      f"the features of {number} images of {name} need {_gigabytes(needed)} as"
      f" {dtype}, and {cache.folder} has {_gigabytes(free)} free. Make room, or"
      " set config.features_dir to another place or config.train.cache_features"
      " to a smaller type or none."
    )


def _gigabytes(number):
  return f"{number / 1e9:.3g} GB"


def make_encode_step(
  model: CoPS, mesh: Mesh
) -> Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]:
  """Compiles the vision tower's step.

  Returns:
    `encode(clip_params, images)`, from uint8 images (b, h, w, 3) to
    `CoPS.encode_images`'s features.
  """

  def encode(clip_params, images):
    return model.apply(
      join_params({}, clip_params),
      normalize_images(images),
      method=CoPS.encode_images,
    )

  split = sharding.batch_sharding(mesh)
  return jax.jit(
    encode,
    in_shardings=(sharding.replicated_sharding(mesh), split),
    out_shardings=split,
  )


def _fill(
  cache,
  examples,
  names,
  model,
  clip,
  device_size,
  message,
  *,
  image_size,
  num_workers,
  skipped,
):
  """Computes features on this process's own devices."""
  if not len(examples):
    return
  mesh = Mesh(np.array(jax.local_devices()), (sharding.DATA_AXIS,))
  batch_size = device_size * mesh.size
  encode = make_encode_step(model, mesh)
  clip_params = sharding.replicate(clip.params, mesh)
  batches = input_pipeline.iterate_batches(
    examples,
    image_size=image_size,
    patch_size=clip.config.vision_config.patch_size,
    batch_size=batch_size,
    num_devices=mesh.size,
    steps=range(input_pipeline.num_batches(len(examples), batch_size)),
    num_workers=num_workers,
    skipped=skipped,
  )
  progress = Progress(len(examples), "images")
  ready = {}
  num_done = 0

  def run(batch):
    images = sharding.shard_batch({"image": batch["image"]}, mesh)["image"]
    return encode(clip_params, images)

  try:
    for batch, outputs in sharding.run_ahead(batches, run):
      for row in np.flatnonzero(batch["padding_mask"]):
        # The name as it was before the file was read.
        ready[names[batch["index"][row]]] = cache.to_record(
          *(array[row] for array in outputs), str(batch["path"][row])
        )
        num_done += 1
        if len(ready) * cache.num_record_bytes >= _FILE_BYTES:
          cache.add(ready)
          ready = {}
      progress.update(num_done, message)
  finally:  # An image that cannot be read costs nothing that was done.
    if ready:
      cache.add(ready)
