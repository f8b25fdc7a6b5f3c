"""The device mesh: batches split over it, parameters replicated or split."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

DATA_AXIS = "data"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Devices along one data axis; by default all, of all processes."""
  devices = jax.devices() if devices is None else devices
  return Mesh(np.array(devices), (DATA_AXIS,))


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


def clip_shardings(
  clip_params: Mapping[str, Any], mesh: Mesh, is_split: bool
) -> Sharding | Mapping[str, Any]:
  """How the devices hold CLIP's parameters: one sharding, or one for each.

  Args:
    clip_params: a tree of arrays.
    mesh: of the devices.
    is_split: whether each device holds a part instead of a copy.
  """
  if is_split:
    return split_shardings(clip_params, mesh)
  return replicated_sharding(mesh)


def jit_step(
  step: Callable[..., Any],
  mesh: Mesh,
  clip_shardings: Sharding | Mapping[str, Any] | None = None,
  *,
  num_replicated: int = 1,
  updates_state: bool = False,
) -> Callable[..., Any]:
  """Compiles a step over a global batch.

  Args:
    step: its last arguments are CLIP's parameters and a batch, whose rows are
      split over the devices.
    mesh: of the devices.
    clip_shardings: see `clip_shardings`; None if every device has a copy.
    num_replicated: arguments before these, of which every device has a copy.
    updates_state: whether the step makes a new first argument: its memory is
      then reused, and every device gets a copy of the results. Otherwise they
      are split as the batch is.
  """

  @functools.wraps(step)
  def step_on_mesh(*arguments):
    # What has to know the mesh inside, such as a kernel, asks JAX for it.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return step(*arguments)

  replicated, split = replicated_sharding(mesh), batch_sharding(mesh)
  return jax.jit(
    step_on_mesh,
    in_shardings=(
      *[replicated] * num_replicated,
      replicated if clip_shardings is None else clip_shardings,
      split,
    ),
    out_shardings=replicated if updates_state else split,
    donate_argnums=0 if updates_state else (),
  )


def shard_batch(
  batch: Mapping[str, np.ndarray],
  mesh: Mesh,
  fields: Sequence[str] | None = None,
) -> dict[str, jax.Array]:
  """Puts this process's part of a global batch on its devices.

  Args:
    batch: this process's rows, by field.
    mesh: of the devices.
    fields: that a step reads, of which the batch may lack some; by default
      all.
  """
  sharding = batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, array)
    for name, array in batch.items()
    if fields is None or name in fields
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


def default_batch_size(mesh: Mesh) -> int:
  """Images in a step of evaluation, over all devices."""
  # More than one image at a time makes a CPU no faster.
  of_a_device = 1 if jax.default_backend() == "cpu" else 8
  return of_a_device * mesh.size


def num_device_bytes(tree: Any) -> int:
  """Bytes of the arrays on one device."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )
