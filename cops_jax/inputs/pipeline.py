"""Batches from image files, with Grain.

A batch depends only on the data set, the seed and the step. Reading can
therefore start at any step, and the global order is the same for any number of
hosts and worker processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import (
  Iterable,
  Iterator,
  Mapping,
  MutableMapping,
  Sequence,
)
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh

from cops_jax.backbones.vision import sizes_of
from cops_jax.config import reading
from cops_jax.errors import InputError
from cops_jax.images import read, tiles
from cops_jax.images.masks import example_mask
from cops_jax.inputs.augmentation import Augmentation, read_example
from cops_jax.losses import count_mask_pixels
from cops_jax.runtime.processes import collect
from cops_jax.runtime.randomness import hash_example
from cops_jax.typing import Integer

if TYPE_CHECKING:
  from cops_jax.inputs.feature_cache import FeatureCache

_logger = logging.getLogger(__name__)

_MAX_THREADS = 16
_PREFETCH_BATCHES = 2
_NO_EXAMPLE = {"has_mask": False, "label": 0, "category": "", "path": ""}


def num_batches(num_examples: int, batch_size: int) -> int:
  """Returns the number of batches in an epoch, including a short last one."""
  return -(-num_examples // batch_size)


@dataclasses.dataclass(frozen=True)
class BatchOptions:
  """Sizes, order and contents of batches.

  Attributes:
    image_size: side of an image in pixels, a multiple of `patch_size`.
    patch_size: side of a patch in pixels.
    batch_size: examples in a global batch; the last of an epoch can have fewer.
    num_devices: devices of all processes; batches are padded to a multiple.
    process_index, process_count: index of this process and number of processes;
      each loads a contiguous part of every batch.
    num_workers: number of processes that decode images; 0 uses threads.
    shuffle_seed: seed of each epoch's order; None keeps the data set's order.
    reading: keyword arguments of `images.read`, see `config.reading`.
    full_masks: if True, masks are pixels instead of counts by patch.
    example_ids: if True, examples have an id, which is the key of their noise.
    tile_grid: rows and columns of the tiles of an image.
    augmentation: augmentation of images, not of features; None disables it.
  """

  image_size: int
  patch_size: int
  batch_size: int
  num_devices: int = 1
  process_index: int = 0
  process_count: int = 1
  num_workers: int = 0
  shuffle_seed: int | None = None
  reading: Mapping[str, int] = dataclasses.field(default_factory=dict)
  full_masks: bool = False
  example_ids: bool = False
  tile_grid: tuple[int, int] = tiles.WHOLE
  augmentation: Augmentation | None = None

  @property
  def num_tiles(self) -> int:
    """Number of tiles of an image, not counting the whole image."""
    return 0 if self.tile_grid == tiles.WHOLE else math.prod(self.tile_grid)

  @property
  def local_size(self) -> int:
    """Number of rows in this process's part of a batch, including padding."""
    padded = num_batches(self.batch_size, self.num_devices) * self.num_devices
    return padded // self.process_count

  def one_pass(self, num_examples: int) -> range:
    """Returns the steps of one epoch."""
    return range(num_batches(num_examples, self.batch_size))


def make_options(
  config: Any, backbone: Any, mesh: Mesh, batch_size: int, **kwargs: Any
) -> BatchOptions:
  """Returns the options of this process for the batches of a run.

  `mesh` contains the devices of the run or only those of this process;
  `**kwargs` are other fields of `BatchOptions`.
  """
  is_cluster = mesh.is_multi_process
  return BatchOptions(
    image_size=config.model.image_size_pixels,
    patch_size=sizes_of(backbone.config).patch_size,
    batch_size=batch_size,
    num_devices=mesh.size,
    process_index=jax.process_index() if is_cluster else 0,
    process_count=jax.process_count() if is_cluster else 1,
    num_workers=config.input.num_workers,
    reading=reading(config),
    **kwargs,
  )


@functools.lru_cache(maxsize=4)
def _permutation(
  number: int, seed: int, epoch: int
) -> Integer[np.ndarray, "n"]:
  return np.random.default_rng((seed, epoch)).permutation(number)


@dataclasses.dataclass(frozen=True)
class _RowLoader:
  """Loads the row at a position in this process's sequence of rows.

  It is a class and not a closure because worker processes must unpickle it.
  """

  examples: Sequence[Mapping[str, Any]]
  options: BatchOptions
  steps: range
  features: FeatureCache | None

  def __call__(self, position: int) -> dict[str, Any]:
    options, num_examples = self.options, len(self.examples)
    step, slot = divmod(position, options.local_size)
    slot += options.process_index * options.local_size
    epoch_steps = num_batches(num_examples, options.batch_size)
    step = self.steps[step]
    epoch, epoch_step = divmod(step, epoch_steps)
    place = epoch_step * options.batch_size + slot
    if slot >= options.batch_size or place >= num_examples:
      return self._padding()
    if options.shuffle_seed is not None:
      order = _permutation(num_examples, options.shuffle_seed, epoch)
      place = int(order[place])
    return self._load(place, step)

  def _load(self, place: int, step: int) -> dict[str, Any]:
    options, index = self.options, place
    features, failures = None, []
    if isinstance(self.examples, Subset):
      index = self.examples.indices[place]
    if index is None:
      return self._padding()
    example = self.examples[place]
    if self.features is not None:
      features = self.features.find(index)
    try:
      if features is None:
        image, pixels, mask = read_example(
          example, place, step, self.examples, options, failures
        )
        facts = self._fields(image, pixels)
      else:
        facts, size = features, tuple(features["size"].tolist())
        orientation = int(facts["orientation"])
        mask = example_mask(example, orientation, size, options.reading)
        mask = mask.fit(options.image_size)
    except InputError as error:
      return self._padding(example["path"], str(error))
    if self.features is not None and features is None:
      raise InputError(
        f"{self.features.folder} has no features of {example['path']}, because"
        " it could not be read when they were computed. Run the same command"
        " again."
      )
    # The cache has only the notes that were made when features were computed.
    lines = dict.fromkeys([*str(facts["notes"]).splitlines(), *mask.notes])
    facts = {**facts, "notes": np.str_("\n".join(lines))}
    row = self._make_row(facts, mask.pixels, place, example, *failures[:1])
    if options.example_ids:
      row["example_id"] = hash_example(example)
    return {**row, "padding_mask": np.bool_(True)}

  def _fields(self, image, pixels):
    """Returns the fields of an image: pixels, how it was read, and tiles."""
    options = self.options
    fields = {
      "image": pixels,
      "orientation": np.int32(image.orientation),
      "size": np.array(image.size, np.int32),
      "notes": np.str_("\n".join(image.notes)),
    }
    if options.num_tiles:
      fields["tiles"] = tiles.cut(image, options.tile_grid, options.image_size)
    return fields

  def _padding(self, path: str = "", error: str = "") -> dict[str, Any]:
    mask = np.zeros((self.options.image_size,) * 2, np.uint8)
    if self.features is None:
      black = np.dstack([mask] * 3)
      features = self._fields(read(black), black)
    else:
      features = self.features.padding()
    example = {**_NO_EXAMPLE, "path": path}
    return self._make_row(features, mask, 0, example, (path, error))

  def _make_row(self, features, mask, index, example, failure=("", "")):
    if self.options.full_masks:
      targets = {"mask": mask}
    else:
      counts = count_mask_pixels(mask, self.options.patch_size)
      targets = {"mask_counts": counts}
    if self.options.example_ids:
      targets["example_id"] = np.uint32(0)
    return {
      **features,
      **targets,
      "index": np.int32(index),
      "has_mask": np.bool_(example["has_mask"]),
      "label": np.int32(example["label"]),
      "category": np.str_(example["category"]),
      "path": np.str_(example["path"]),
      "padding_mask": np.bool_(False),
      "failure": np.array(failure),
    }


class Subset(Sequence):
  """Selected examples of a data set; can be passed to worker processes.

  Attributes:
    indices: positions of the examples in the data set; None means padding.
  """

  def __init__(self, examples: Sequence, indices: Sequence[int | None]):
    self._examples, self.indices = examples, indices

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: int) -> Mapping[str, Any]:
    place = self.indices[index]
    return _NO_EXAMPLE if place is None else self._examples[place]


def iterate_batches(
  examples: Sequence[Mapping[str, Any]],
  options: BatchOptions,
  steps: range,
  *,
  skipped: MutableMapping[str, str] | None = None,
  features: FeatureCache | None = None,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields this process's part of each global batch.

  Args:
    examples: a data set, see `cops_jax.datasets.load`.
    options: sizes, order and contents of the batches.
    steps: steps to yield; their numbers continue from epoch to epoch.
    skipped: receives the paths of examples whose image or mask cannot be read,
      with reasons; these examples become padding. If None, an unreadable file
      raises InputError.
    features: cache of features to use instead of images; None reads images.

  Yields:
    Batches with these fields:

    - image: uint8 (b, h, w, 3); with a tile grid also tiles, uint8 (b, t, h, w,
      3). With `features` instead image_features (b, d) or (b, f, d), and
      patch_features (b, f, n, d).
    - mask_counts: int32 (b, n); with full masks instead mask, uint8 (b, h, w).
    - index (position in the data set) and label, int32; has_mask and
      padding_mask, bool; category and path, str; example_id, uint32, if the
      options enable it: all (b,).
    - orientation (EXIF's number), int32 (b,); size (width and height), int32
      (b, 2); and notes (lines), str (b,): all about the example's own file.

    Padding and skipped examples have padding_mask False, features of ones, and
    zeros in the other fields.

  Raises:
    InputError: if an example cannot be read or its features are damaged.
  """
  load_row = _RowLoader(examples, options, steps, features)
  with contextlib.closing(_open_batches(load_row)) as batches:
    for batch in batches:
      for path, reason in batch.pop("failure").tolist():
        if reason:
          _skip(examples, path, reason, skipped)
      yield batch


def keep_pace(
  batches: Iterable[dict[str, np.ndarray]],
  number: int,
  options: BatchOptions,
  features: FeatureCache | None,
  errors: list[Exception],
) -> Iterator[dict[str, np.ndarray]]:
  """Yields batches until an error occurs; in a cluster, then yields padding.

  A step of a cluster needs all processes. A process with an error therefore
  takes part with padding, with labels -1, until all processes know of it.

  Args:
    batches: batches of this process; iterating over them can raise.
    number: number of batches.
    options, features: the arguments of `iterate_batches`.
    errors: errors of this process; receives those of `batches`.
  """
  with collect(errors):
    for batch in batches:
      if errors:
        break
      yield batch
      number -= 1
  if errors and jax.process_count() > 1:
    row = _RowLoader((), options, range(0), features)._padding()
    row = {**row, "label": np.int32(-1)}
    del row["failure"]
    for _ in range(number):
      yield {
        name: np.stack([value] * options.local_size)
        for name, value in row.items()
      }


def _open_batches(load_row):
  """Returns Grain's iterator, whose threads or processes load rows ahead."""
  import grain
  from absl import flags

  options, local_size = load_row.options, load_row.options.local_size
  rows = grain.MapDataset.range(len(load_row.steps) * local_size).map(load_row)
  rows = rows.to_iter_dataset(
    grain.ReadOptions(
      num_threads=min(os.cpu_count() or 1, _MAX_THREADS),
      prefetch_buffer_size=_PREFETCH_BATCHES * local_size,
    )
  )
  if options.num_workers:
    if not flags.FLAGS.is_parsed():  # Grain passes the flags to its workers.
      flags.FLAGS.mark_as_parsed()
    # Workers take turns row by row, so the order does not change.
    rows = rows.mp_prefetch(
      grain.MultiprocessingOptions(
        options.num_workers,
        per_worker_buffer_size=num_batches(local_size, options.num_workers),
      ),
      worker_init_fn=_follow_parent,
    )
    # Use pipes: shared memory is not faster, and containers have little of it.
    rows = grain.experimental.WithOptionsIterDataset(
      rows, grain.experimental.DatasetOptions(min_shm_size=1 << 62)
    )
  return iter(rows.batch(local_size))


def _follow_parent(*_):
  """Makes a worker ignore Ctrl-C and end with the main process."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
  multiprocessing.parent_process().join()
  os._exit(1)


def _skip(examples, path, reason, skipped):
  if skipped is None:
    raise InputError(
      f"{path} of data set {examples[0]['dataset']!r}: {reason}. Replace the"
      " file (and delete the copy of a prepared data set), or skip unreadable"
      " files with --config.input.unreadable_files=skip"
    )
  if path not in skipped:
    _logger.warning("skipping %s: %s", path, reason)
    skipped[path] = reason
