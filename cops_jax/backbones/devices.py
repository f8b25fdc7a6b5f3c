"""Functions that each device applies to its own rows of a batch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec


def on_each_device(function: Callable[..., Any]) -> Callable[..., Any]:
  """Returns a function that each device applies to its own rows.

  Kernels and loops need this, because the compiler does not split them over the
  devices of `mesh.jit_step`. All arguments and results have equally many rows.
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
  """Returns a function that computes one row at a time.

  Intermediate results then stay small and in the processor's cache.
  """

  @on_each_device
  def map_rows(array):
    def apply_to_row(row):
      return jax.tree.map(lambda leaf: leaf[0], function(row[None]))

    return jax.lax.map(apply_to_row, array)

  @functools.wraps(function)
  def choose(array):
    return function(array) if array.shape[0] == 1 else map_rows(array)

  return choose
