"""The device mesh: batches split over it, parameters replicated or split."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"


def make_mesh() -> Mesh:
  """All devices along one data axis."""
  return Mesh(np.array(jax.devices()), (DATA_AXIS,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """First axis split over the devices."""
  return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def replicated_sharding(mesh: Mesh) -> NamedSharding:
  """A whole copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def split_shardings(tree: Any, mesh: Mesh) -> Any:
  """A sharding for each array that leaves every device an equal part of it.

  The longest axis that the number of devices divides is split; an array without
  one is replicated.
  """

  def split(leaf):
    axes = [
      axis for axis, size in enumerate(leaf.shape) if size % mesh.size == 0
    ]
    if not axes:
      return replicated_sharding(mesh)
    axis = max(axes, key=lambda axis: leaf.shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, DATA_AXIS))

  return jax.tree.map(split, tree)


def clip_shardings(clip_params: Any, mesh: Mesh, is_split: bool) -> Any:
  """How CLIP's parameters lie on the devices: one sharding, or one for each.

  Args:
    clip_params: a tree of arrays.
    mesh: of the devices.
    is_split: whether each device holds a part instead of a copy.
  """
  if is_split:
    return split_shardings(clip_params, mesh)
  return replicated_sharding(mesh)


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
  """Puts this process's part of a global batch on its devices."""
  sharding = batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, array)
    for name, array in batch.items()
  }


def local_rows(tree: Any, mesh: Mesh) -> Any:
  """This process's rows of arrays that are split over the mesh."""
  if jax.process_count() == 1:
    return tree
  return multihost_utils.global_array_to_host_local_array(
    tree, mesh, PartitionSpec(DATA_AXIS)
  )


def run_ahead(
  batches: Iterable[Any], step: Callable[[Any], Any]
) -> Iterator[tuple[Any, Any]]:
  """Batches and a step's outputs, on the host; devices run one batch ahead."""
  ready = None
  for batch in batches:
    running = batch, step(batch)
    if ready is not None:
      yield ready[0], jax.device_get(ready[1])
    ready = running
  if ready is not None:
    yield ready[0], jax.device_get(ready[1])


def replicate(tree: Any, mesh: Mesh) -> Any:
  """Puts a copy of every array on every device."""
  return jax.device_put(tree, replicated_sharding(mesh))


def num_device_bytes(tree: Any) -> int:
  """Bytes of the arrays on one device."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )
