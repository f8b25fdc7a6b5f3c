"""The mesh of devices, and the sharding of batches and parameters on it."""

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
  """Returns a mesh of devices, by default those of all processes."""
  devices = jax.devices() if devices is None else devices
  return Mesh(np.array(devices), (DATA_AXIS,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns a sharding that splits the first axis over the devices."""
  return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def replicated_sharding(mesh: Mesh) -> NamedSharding:
  """Returns a sharding with a copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def backbone_shardings(
  backbone_params: Mapping[str, Any], mesh: Mesh, is_split: bool
) -> Sharding | Mapping[str, Any]:
  """Returns a tree with the sharding of each array, or one sharding for all.

  Args:
    backbone_params: tree of the backbone's arrays.
    mesh: mesh of the devices.
    is_split: if True, each device holds an equal part of each array instead of
      a copy. An array is split along its longest axis that the number of
      devices divides.
  """

  def split(leaf):
    axes = [
      axis for axis, size in enumerate(leaf.shape) if size % mesh.size == 0
    ]
    if not axes:
      return replicated_sharding(mesh)
    axis = max(axes, key=lambda axis: leaf.shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, DATA_AXIS))

  if is_split:
    return jax.tree.map(split, backbone_params)
  return replicated_sharding(mesh)


def jit_step(
  step: Callable[..., Any],
  mesh: Mesh,
  shardings: Sharding | Mapping[str, Any] | None = None,
  *,
  num_replicated: int = 1,
  updates_state: bool = False,
) -> Callable[..., Any]:
  """Compiles a step over a global batch.

  Args:
    step: function of `num_replicated` arguments, the backbone's parameters and
      a batch. The batch's rows are split over the devices.
    mesh: mesh of the devices.
    shardings: result of `backbone_shardings`; None means a copy on every
      device.
    num_replicated: number of first arguments, with a copy on every device.
    updates_state: True if the step returns a new value of its first argument.
      The old value is then donated, and the results are replicated instead of
      split like the batch.
  """

  @functools.wraps(step)
  def step_on_mesh(*arguments):
    # The attention kernels get the mesh from JAX's context.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return step(*arguments)

  replicated, split = replicated_sharding(mesh), batch_sharding(mesh)
  return jax.jit(
    step_on_mesh,
    in_shardings=(
      *[replicated] * num_replicated,
      replicated if shardings is None else shardings,
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
  """Puts this process's rows of a global batch on its devices.

  If `fields` are named, puts only those that the batch has.
  """
  sharding = batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, array)
    for name, array in batch.items()
    if fields is None or name in fields
  }


def padded_batches(
  images: Sequence[np.ndarray], mesh: Mesh, max_size: int
) -> Iterator[tuple[int, dict[str, jax.Array]]]:
  """Yields the number of images in each batch, and the batch on the devices.

  Zeros pad a batch to a power of two of images on each device.

  Args:
    images: uint8 images of one size, (h, w, 3).
    mesh: mesh of devices of this process.
    max_size: largest number of images in a batch.
  """
  for start in range(0, len(images), max_size):
    batch = images[start : start + max_size]
    size = mesh.size
    while size < len(batch):
      size *= 2
    pixels = np.zeros((size, *batch[0].shape), np.uint8)
    pixels[: len(batch)] = batch
    yield len(batch), shard_batch({"image": pixels}, mesh)


def local_rows(tree: Any, mesh: Mesh) -> Any:
  """Returns this process's rows of arrays that are split over the mesh."""
  if jax.process_count() == 1:
    return tree
  return multihost_utils.global_array_to_host_local_array(
    tree, mesh, PartitionSpec(DATA_AXIS)
  )


def run_ahead(
  batches: Iterable[Any], step: Callable[[Any], Any]
) -> Iterator[tuple[Any, Any]]:
  """Yields each batch and its outputs; the devices run one batch ahead."""
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
  """Returns the default number of images in a step of an evaluation."""
  # A CPU is not faster with more than one image at a time.
  return mesh.size * (1 if jax.default_backend() == "cpu" else 8)


def num_device_bytes(tree: Any) -> int:
  """Returns the number of bytes that arrays use on one device."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )
