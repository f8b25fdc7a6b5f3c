"""Running processes, their checkpoints, and damage to files."""

import time

import jax
import orbax.checkpoint as ocp

from cops_jax import files


def leaves(workdir, step, item):
  """Returns a checkpoint's arrays as bytes; Orbax's file names are random."""
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


def wait_for(path, process):
  """Waits until a file or folder exists, while a process runs."""
  deadline = time.monotonic() + 120
  while not files.exists(path):
    assert time.monotonic() < deadline and process.poll() is None
    time.sleep(0.01)


def flip(path):
  """Flips a bit in the middle of a file."""
  content = bytearray(files.read_file(path))
  content[len(content) // 2] ^= 1
  files.write_file(path, bytes(content))
