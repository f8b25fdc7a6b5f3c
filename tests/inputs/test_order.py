"""Every example once an epoch, in an order of whole shards or of all."""

import pickle

import numpy as np
import pytest

from cops_jax.inputs.order import Order

LENGTHS = (3, 1, 4, 1, 5, 9, 2)
SHARD_OF = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
NUMBER = len(SHARD_OF)


def order_of(epoch, seed=1, window=0):
  order = Order(NUMBER, seed, LENGTHS, window)
  return [order.index(epoch, place) for place in range(NUMBER)]


def test_without_windows_all_are_shuffled_together():
  """As in the runs of earlier versions."""
  want = np.random.default_rng((1, 2)).permutation(NUMBER)
  assert order_of(2) == want.tolist()
  assert order_of(2, seed=None) == list(range(NUMBER))


@pytest.mark.parametrize("window", (1, 2, 3, 7, 9))
def test_a_window_holds_whole_shards(window):
  epochs = [order_of(epoch, window=window) for epoch in range(3)]
  for found in epochs:
    assert sorted(found) == list(range(NUMBER))
    begun = list(dict.fromkeys(SHARD_OF[found]))
    while begun:
      shards, begun = begun[:window], begun[window:]
      size = sum(LENGTHS[shard] for shard in shards)
      assert set(SHARD_OF[found[:size]]) == set(shards)
      if size > 5:
        assert found[:size] != sorted(found[:size])
      found = found[size:]
  assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
  assert order_of(0, seed=2, window=window) != epochs[0]


def test_a_place_depends_on_nothing_that_was_asked_before():
  want = [order_of(epoch, window=2) for epoch in range(6)]
  order = pickle.loads(pickle.dumps(Order(NUMBER, 1, LENGTHS, 2)))
  rng = np.random.default_rng(0)
  for epoch, place in rng.integers((6, NUMBER), size=(200, 2)).tolist():
    assert order.index(epoch, place) == want[epoch][place]


@pytest.mark.parametrize("window", (0, 1, 2, 7))
def test_what_is_needed_is_known_before(window):
  order = Order(NUMBER, 1, LENGTHS, window)
  window = window or len(LENGTHS)
  following = SHARD_OF[order_of(1, window=order.window_shards)[0]]
  for place, index in enumerate(order_of(0, window=order.window_shards)):
    ahead = order.shards_ahead(0, place, is_last=False)
    assert SHARD_OF[index] in ahead[:window] and len(ahead) <= 2 * window
  assert following in ahead[-window:]
  assert len(order.shards_ahead(0, NUMBER - 1, is_last=True)) <= window


def test_in_order_the_next_shards_are_needed():
  order = Order(NUMBER, None, LENGTHS)
  for place in range(NUMBER):
    ahead = order.shards_ahead(0, place, is_last=True)
    assert ahead == tuple(range(SHARD_OF[place], len(LENGTHS)))
