"""Where arrays are placed."""

import jax
import jax.numpy as jnp
import numpy as np

from cops_jax.runtime.mesh import clip_shardings, make_mesh, shard_batch


def test_the_longest_divisible_axis_is_split():
  tree = {
    "wide": jnp.zeros((8, 64)),
    "long": jnp.zeros((72, 16, 8)),
    "odd": jnp.zeros((7, 3)),
    "scalar": jnp.zeros(()),
  }
  shardings = clip_shardings(tree, make_mesh(), is_split=True)
  assert {name: tuple(leaf.spec) for name, leaf in shardings.items()} == {
    "wide": (None, "data"),
    "long": ("data",),
    "odd": (),
    "scalar": (),
  }


def test_a_step_gets_the_fields_that_it_reads():
  mesh = make_mesh(jax.devices()[:2])
  batch = {"a": np.arange(4), "path": np.array(["x"] * 4)}
  sharded = shard_batch(batch, mesh, ("a", "b"))
  assert set(sharded) == {"a"}
  assert len(sharded["a"].sharding.device_set) == mesh.size == 2
