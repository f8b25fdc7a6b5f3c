"""From image files to batches, with Grain.

A batch is a function of the data set, the seed and the step alone. So the step
is all of an iterator's state, in the middle of an epoch too, and any number of
hosts and worker processes sees the same global order.
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
  """Batches in one pass over the examples, the short last one included."""
  return -(-num_examples // batch_size)


@dataclasses.dataclass(frozen=True)
class BatchOptions:
  """How examples become batches.

  Attributes:
    image_size: side in pixels, a multiple of `patch_size`.
    patch_size: side in pixels.
    batch_size: examples in a global batch. An epoch's last batch may hold less.
    num_devices: of all processes; batches are padded to a multiple of it.
    process_index, process_count: which contiguous part of each batch is this
      process's.
    num_workers: processes that decode; 0 for threads of this one.
    shuffle_seed: of each epoch's own random order; None keeps the order.
    reading: keyword arguments of `images.read`, see `config.reading`.
    full_masks: whether masks come as pixels instead of counts by patch.
    example_ids: whether examples come with an id, which keys their noise.
    tile_grid: rows and columns of the tiles that come with an image.
    augmentation: of images, not of features; None for none.
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
    """Tiles of an image, without the whole."""
    return 0 if self.tile_grid == tiles.WHOLE else math.prod(self.tile_grid)

  @property
  def local_size(self) -> int:
    """Rows in this process's part of a batch, padding included."""
    padded = num_batches(self.batch_size, self.num_devices) * self.num_devices
    return padded // self.process_count

  def one_pass(self, num_examples: int) -> range:
    """The steps in which every example comes once."""
    return range(num_batches(num_examples, self.batch_size))


def make_options(
  config: Any, backbone: Any, mesh: Mesh, batch_size: int, **kwargs: Any
) -> BatchOptions:
  """Returns how a run makes this process's part of its batches.

  Args:
    config: a ConfigDict with the fields of `cops_jax.config`.
    backbone: from `load_backbone`.
    mesh: devices of the run, or of this process alone.
    batch_size: examples in a global batch.
    **kwargs: other fields of the options.
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

  It is a class, not a closure, so that it can be passed to worker processes.
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
        f"{self.features.folder} has no features of {example['path']}, which"
        " could not be read when they were computed: give the same command"
        " again"
      )
    # The cache has the notes on masks of when features were computed.
    lines = dict.fromkeys([*str(facts["notes"]).splitlines(), *mask.notes])
    facts = {**facts, "notes": np.str_("\n".join(lines))}
    row = self._make_row(facts, mask.pixels, place, example, *failures[:1])
    if options.example_ids:
      row["example_id"] = hash_example(example)
    return {**row, "padding_mask": np.bool_(True)}

  def _fields(self, image, pixels):
    """Returns the fields of an image's file: pixels, facts and tiles."""
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
  """Some of a data set's examples; can be passed to worker processes.

  Attributes:
    indices: their positions in the data set; None stands for padding.
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
    examples: a data set, see `cops_jax.datasets`.
    options: sizes, order and place of the batches.
    steps: which batches; step numbers run on from epoch to epoch.
    skipped: receives path and reason of examples whose image or mask cannot be
      read, and which are then left out; if None, they are an error.
    features: a cache of the examples' features, to take in place of images.

  Yields:
    image uint8 (b, h, w, 3), with a grid tiles uint8 (b, t, h, w, 3) or, with
    `features`, image_features (b, d) and patch_features (b, f, n, d);
    mask_counts int32 (b, n) or, with full masks,
    mask uint8 (b, h, w); index in the data set int32, has_mask bool, label
    int32, category and path str, padding_mask bool and, if the options ask for
    it, example_id uint32, all (b,); and how the image was read: orientation
    int32 (b,), 1 for upright, size int32 (b, 2), width and height, and notes
    str (b,), a line for each, all of a mosaic's own image. Padding and skipped
    examples have padding_mask False and zeros, but features of ones.

  Raises:
    InputError: an example cannot be read, or its features are damaged.
  """
  load_row = _RowLoader(examples, options, steps, features)
  with contextlib.closing(_open_batches(load_row)) as batches:
    for batch in batches:
      for path, reason in batch.pop("failure").tolist():
        if reason:
          _leave_out(examples, path, reason, skipped)
      yield batch


def keep_pace(
  batches: Iterable[dict[str, np.ndarray]],
  number: int,
  options: BatchOptions,
  features: FeatureCache | None,
  errors: list[Exception],
) -> Iterator[dict[str, np.ndarray]]:
  """Yields batches until there is an error; in a cluster, then padding.

  Steps of a cluster need all processes, so one without a batch takes part with
  padding, whose labels are -1, until all of them know.

  Args:
    batches: may end with an error.
    number: of the batches.
    options, features: of the batches, see `iterate_batches`.
    errors: of this process; receives those of the batches.
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
  """Returns Grain's iterator, whose threads or processes run ahead."""
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
    if not flags.FLAGS.is_parsed():  # Grain hands them on to its workers.
      flags.FLAGS.mark_as_parsed()
    # Workers take turns row by row, so the order stays that of the positions.
    rows = rows.mp_prefetch(
      grain.MultiprocessingOptions(
        options.num_workers,
        per_worker_buffer_size=num_batches(local_size, options.num_workers),
      ),
      worker_init_fn=_follow_parent,
    )
    # Rows through pipes: shared memory is no faster here, and containers have
    # little of it.
    rows = grain.experimental.WithOptionsIterDataset(
      rows, grain.experimental.DatasetOptions(min_shm_size=1 << 62)
    )
  return iter(rows.batch(local_size))


def _follow_parent(*_):
  """Makes a worker end with the main process, and not by Ctrl-C."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
  multiprocessing.parent_process().join()
  os._exit(1)


def _leave_out(examples, path, reason, skipped):
  if skipped is None:
    raise InputError(
      f"{path} of data set {examples[0]['dataset']!r}: {reason}. Replace the"
      " file and, if the data set was prepared, delete the prepared copy: it is"
      " then prepared again. Or leave such files out:"
      " config.input.unreadable_files=skip"
    )
  if path not in skipped:
    _logger.warning("left out %s: %s", path, reason)
    skipped[path] = reason
