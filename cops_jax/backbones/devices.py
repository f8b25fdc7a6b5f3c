"""Computations on each device's own images that the compiler does not split."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec


def on_each_device(function: Callable[..., Any]) -> Callable[..., Any]:
  """Returns a function that each device computes on its own rows.

  For kernels and loops, which the compiler does not split over the devices of
  `mesh.jit_step`. Arrays, and results, have as many rows.
  """

  @functools.wraps(function)
  def split(*arrays):
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.are_all_axes_manual:
      return function(*arrays)
    spec = PartitionSpec(mesh.axis_names)
    return jax.shard_map(
      function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )(*arrays)

  return split


def one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
  """Returns a function that computes one row after the other.

  What it computes on the way then stays small, and near the processor.
  """

  @on_each_device
  def map_rows(array):
    def of_row(row):
      return jax.tree.map(lambda leaf: leaf[0], function(row[None]))

    return jax.lax.map(of_row, array)

  @functools.wraps(function)
  def choose(array):
    return function(array) if array.shape[0] == 1 else map_rows(array)

  return choose
