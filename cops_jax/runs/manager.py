"""Orbax's CheckpointManager with the settings of this project."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp

from cops_jax.paths import AnyPath, is_address, to_path

_SAVE_SECONDS = 300  # A save fails after this time without progress.


class Manager(ocp.CheckpointManager):
  """Orbax's manager without its preemption, which the training loop handles."""

  def reached_preemption(self, step: int) -> bool:
    # Orbax's method uses JAX's preemption service, which `processes` disables.
    return False


def open_manager(
  directory: AnyPath, complete: Callable[[AnyPath], None]
) -> Manager:
  """Returns a manager of checkpoints that only this process saves.

  `complete` runs in the background with each folder that Orbax has written.
  """
  return Manager(
    directory,
    options=_make_options(complete, is_address(directory)),
    item_handlers={
      "params": _make_arrays_handler(),
      "opt_state": _make_arrays_handler(),
      "recent_terms": ocp.JsonCheckpointHandler(
        multiprocessing_options=_alone()
      ),
    },
  )


def _alone():
  """Returns Orbax's options for a process that waits for no other process."""
  index = jax.process_index()
  return ocp.options.MultiprocessingOptions(
    primary_host=index,
    active_processes={index},
    barrier_sync_key_prefix=str(index),
  )


def _make_options(complete, is_in_bucket):
  atomicity = ocp.path.atomicity
  way = (
    atomicity.CommitFileTemporaryPath
    if is_in_bucket
    else atomicity.AtomicRenameTemporaryPath
  )

  class Completed(way):
    """Temporary path that calls `complete` after Orbax has finished it."""

    async def finalize(self):
      await super().finalize()
      complete(to_path(os.fspath(self.get_final())))

  return ocp.CheckpointManagerOptions(
    create=False,
    multiprocessing_options=_alone(),
    async_options=ocp.AsyncOptions(
      timeout_secs=_SAVE_SECONDS,
      # With True, some of Orbax's threads wait for a directory forever.
      create_directories_asynchronously=False,
    ),
    temporary_path_class=Completed,
  )


def _make_arrays_handler():
  """Returns a handler that writes whole arrays.

  By default each device writes a slice of every array, which is slower for such
  small arrays.
  """
  arrays = ocp.type_handlers.ArrayHandler(
    primary_host=jax.process_index(), use_replica_parallel=False
  )
  return ocp.PyTreeCheckpointHandler(
    multiprocessing_options=_alone(),
    type_handler_registry=ocp.type_handlers.create_type_handler_registry(
      (jax.Array, arrays)
    ),
  )


def restore_as(tree: Any) -> ocp.args.PyTreeRestore:
  """Returns Orbax's arguments that restore a tree's shapes and shardings.

  Leaves without a sharding are restored on one device. By default Orbax
  requires the devices that saved them.
  """
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

  def describe(leaf):
    struct = ocp.utils.to_shape_dtype_struct(leaf)
    return jax.ShapeDtypeStruct(
      struct.shape, struct.dtype, sharding=struct.sharding or device
    )

  tree = jax.tree.map(describe, tree)
  return ocp.args.PyTreeRestore(
    tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree)
  )
