"""Features of batches, shared by all methods."""

import jax
import numpy as np
import pytest

from cops_jax.backbones.features import encode_batch
from cops_jax.runtime.mesh import jit_step, make_mesh
from helpers import golden
from helpers.golden import assert_close


@pytest.mark.parametrize("num_devices", (1, 2))
def test_a_batch_needs_no_more_memory_than_one_image(num_devices):
  """CPU devices compute the features of one image at a time."""
  model, variables = golden.model("visa"), golden.variables()
  mesh = make_mesh(jax.devices()[:num_devices])

  def encode(backbone_params, batch):
    return encode_batch(model, backbone_params, batch)

  encode = jit_step(encode, mesh, num_replicated=0)
  backbone_params = variables["params"]["backbone"]
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (8, 98, 98, 3), dtype=np.uint8)

  def compiled(number):
    batch = {"image": images[:number]}
    return encode.lower(backbone_params, batch).compile()

  one, many = (compiled(number * num_devices) for number in (1, 4))
  memory, bound = (
    step.memory_analysis().temp_size_in_bytes for step in (many, one)
  )
  assert memory < 1.5 * bound
  found = many(backbone_params, {"image": images[: 4 * num_devices]})
  for row in range(0, 4 * num_devices, num_devices):
    batch = {"image": images[row : row + num_devices]}
    for all_rows, rows in zip(found, one(backbone_params, batch), strict=True):
      assert_close(all_rows[row : row + num_devices], rows, 1e-6)
