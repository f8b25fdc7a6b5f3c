"""What is in checkpoints."""

import jax
import orbax.checkpoint as ocp


def leaves(workdir, step, item):
  """Arrays of a checkpoint as bytes; Orbax's files have random names."""
  path = workdir / "checkpoints" / str(step) / item
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  with ocp.StandardCheckpointer() as checkpointer:
    shapes = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
      checkpointer.metadata(path).item_metadata.tree,
    )
    tree = jax.device_get(checkpointer.restore(path, shapes))
  found = [leaf.tobytes() for leaf in jax.tree.leaves(tree)]
  assert sum(map(len, found)) > 10_000
  return found
