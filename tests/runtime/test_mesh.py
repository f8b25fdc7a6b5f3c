"""Where arrays are placed, and what devices exchange."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cops_jax.runtime.mesh import (
  make_mesh,
  num_device_bytes,
  replicate,
  replicated_sharding,
  shard_batch,
  split_shardings,
)
from cops_jax.training.step import create_train_state, make_train_step
from helpers import golden
from helpers.steps import make_adam, tiny_batch
from tools.compile_ahead import exchanges


def compile_step(reconstruction="none", is_split=False):
  mesh = make_mesh()
  clip_params = golden.clip_params()
  shardings = (
    split_shardings(clip_params, mesh)
    if is_split
    else replicated_sharding(mesh)
  )
  fields = {"train.reconstruction": reconstruction}
  model, optimizer = golden.model("visa", fields), make_adam()
  step = make_train_step(model, optimizer, mesh, shardings)
  params = model.init_trainable(jax.random.key(0))
  state = create_train_state(params, optimizer)
  arguments = (
    replicate(state, mesh),
    jax.device_put(clip_params, shardings),
    shard_batch(tiny_batch(8, 8), mesh),
  )
  return step, arguments


@pytest.mark.parametrize("reconstruction", ("none", "pairwise"))
def test_only_the_trainable_gradient_travels(reconstruction):
  """Losses are means over the global batch: a few numbers travel for them."""
  step, arguments = compile_step(reconstruction)
  params, clip_params = arguments[0].params, arguments[1]
  gradient = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  compiled = step.lower(*arguments).compile()
  total = sum(exchanges(compiled.as_text()).values())
  assert gradient <= total
  # Scalars of the loss terms; where it compares every image with every bias,
  # the batch's image features or biases too.
  width = golden.model("visa").clip.config.projection_dim
  pairs = 0 if reconstruction == "none" else 4 * 8 * width * 4
  assert total <= gradient + pairs + 4096
  frozen = sum(leaf.nbytes for leaf in jax.tree.leaves(clip_params))
  assert total < frozen


def test_split_clip_takes_a_part_of_the_memory_and_gives_the_same_loss():
  step, arguments = compile_step()
  split_step, split_arguments = compile_step(is_split=True)
  whole = num_device_bytes(arguments[1])
  part = num_device_bytes(split_arguments[1])
  assert part < 0.2 * whole
  _, terms = step(*arguments)
  _, split_terms = split_step(*split_arguments)
  for name, term in terms.items():
    np.testing.assert_allclose(split_terms[name], term, rtol=1e-5)


def test_split_axes():
  mesh = make_mesh()
  tree = {
    "wide": jnp.zeros((8, 64)),
    "long": jnp.zeros((72, 16, 8)),
    "odd": jnp.zeros((7, 3)),
    "scalar": jnp.zeros(()),
  }
  specs = {
    name: tuple(leaf.spec) for name, leaf in split_shardings(tree, mesh).items()
  }
  assert specs == {
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
