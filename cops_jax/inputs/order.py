"""The order in which examples come, epoch by epoch."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from cops_jax.typing import Integer

_SHARDS_AHEAD = 8  # In reading without shuffling.


@functools.lru_cache(maxsize=4)
def _permutation(number: int, *seed: int) -> Integer[np.ndarray, "n"]:
  return np.random.default_rng(seed).permutation(number)


@dataclasses.dataclass(frozen=True, eq=False)  # Hashed as itself: quickly.
class Order:
  """Every example once an epoch, in an order that the seed alone decides.

  A windowed order takes the shards in a random order of the epoch's own, and
  shuffles the examples of so many at a time. It can be passed to worker
  processes.

  Attributes:
    num_examples: of the data set.
    seed: None keeps the data set's own order.
    shard_lengths: examples of each shard, in the data set's order; may be empty
      without windows.
    window_shards: shards whose examples are shuffled together; 0 for all.
  """

  num_examples: int
  seed: int | None = None
  shard_lengths: tuple[int, ...] = ()
  window_shards: int = 0

  def index(self, epoch: int, place: int) -> int:
    """The example that comes at a place of an epoch."""
    if self.seed is None:
      return place
    if not self.window_shards:
      return int(_permutation(self.num_examples, self.seed, epoch)[place])
    window, start, _ = self._find_window(epoch, place)
    return int(_examples_of(self, epoch, window)[place - start])

  def shards_ahead(
    self, epoch: int, place: int, is_last: bool
  ) -> tuple[int, ...]:
    """The shards that are needed from a place on, and soon.

    Of a window, and from its first quarter on, when no reader is likely to be
    left in the one before, of the next: that of the next epoch at the end.

    Args:
      epoch, place: as in `index`.
      is_last: whether the epoch is.
    """
    if self.seed is None:
      first = int(np.searchsorted(_ends(self), place, "right"))
      number = len(self.shard_lengths)
      return tuple(range(first, min(first + _SHARDS_AHEAD, number)))
    window, start, end = self._find_window(epoch, place)
    ahead = _shards_of(self, epoch, window)
    if 4 * (place + 1 - start) >= end - start:
      if end < self.num_examples:
        ahead += _shards_of(self, epoch, window + 1)
      elif not is_last:
        ahead += _shards_of(self, epoch + 1, 0)
    return ahead

  def _find_window(self, epoch, place):
    """A window's number, and where it begins and ends in an epoch."""
    ends = _window_ends(self, epoch)
    window = int(np.searchsorted(ends, place, "right"))
    return window, int(ends[window - 1]) if window else 0, int(ends[window])


@functools.lru_cache(maxsize=4)
def _ends(order):
  """Where each shard ends, in the data set's order."""
  return np.cumsum(order.shard_lengths)


def _shards_of(order, epoch, window):
  shards = _permutation(len(order.shard_lengths), order.seed, epoch)
  number = order.window_shards or len(shards)
  return tuple(map(int, shards[window * number : (window + 1) * number]))


@functools.lru_cache(maxsize=4)
def _window_ends(order, epoch):
  number = len(order.shard_lengths)
  shards = _permutation(number, order.seed, epoch)
  lengths = np.asarray(order.shard_lengths)[shards]
  firsts = range(0, number, order.window_shards or number)
  return np.cumsum(np.add.reduceat(lengths, firsts))


@functools.lru_cache(maxsize=4)
def _examples_of(order, epoch, window):
  """The examples of a window, shuffled."""
  ends = _ends(order)
  examples = np.concatenate(
    [
      np.arange(ends[shard] - order.shard_lengths[shard], ends[shard])
      for shard in _shards_of(order, epoch, window)
    ]
  )
  # Not (seed, epoch, 0), which numpy takes for the same as (seed, epoch).
  return examples[_permutation(len(examples), order.seed, epoch, window + 1)]
