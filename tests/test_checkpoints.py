"""Checkpoints of parameters and optimizer."""

import jax.numpy as jnp
import numpy as np
import pytest

from cops_jax.checkpoints import Checkpoints, has_checkpoint
from cops_jax.errors import InputError


def test_round_trip(tmp_path):
  params = {"a": jnp.arange(3.0), "b": {"c": jnp.ones((2, 2))}}
  opt_state = ({"count": jnp.int32(5)}, jnp.full(3, 0.1))
  with Checkpoints(tmp_path, num_kept=2) as saved:
    assert saved.latest_step() is None
    for step in (1, 2, 3):
      scaled = {**params, "a": params["a"] * step}
      saved.save(step, scaled, opt_state)
  with Checkpoints(tmp_path) as saved:
    assert saved.latest_step() == 3
    step, restored, state = saved.restore(params, opt_state)
    assert step == 3
    np.testing.assert_array_equal(restored["a"], params["a"] * 3)
    np.testing.assert_array_equal(state[1], opt_state[1])
    assert int(state[0]["count"]) == 5
    step, restored = saved.restore_params(params)
    np.testing.assert_array_equal(restored["b"]["c"], params["b"]["c"])
  kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
  assert kept == ["2", "3"]


def test_missing_checkpoint(tmp_path):
  assert not has_checkpoint(tmp_path / "nowhere")
  with Checkpoints(tmp_path) as saved:
    with pytest.raises(InputError, match="has no checkpoint yet"):
      saved.restore_params({"a": jnp.zeros(3)})


def test_checkpoint_of_another_size(tmp_path):
  with Checkpoints(tmp_path, num_kept=1) as saved:
    saved.save(1, {"a": jnp.zeros(3)}, {"count": jnp.int32(1)})
  with Checkpoints(tmp_path) as saved:
    with pytest.raises(InputError, match="cannot be restored"):
      saved.restore_params({"a": jnp.zeros(4)})
