"""Orbax checkpoints of what is trained."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from cops_jax.errors import InputError


def has_checkpoint(workdir: str | os.PathLike) -> bool:
  """Whether a work directory, which need not exist, has a checkpoint."""
  with Checkpoints(workdir) as saved:
    return saved.latest_step() is not None


class Checkpoints:
  """The checkpoints of one work directory; use as a context manager.

  Saved are the trainable parameters and the optimizer's state, under the number
  of steps taken. CLIP's frozen parameters never are.
  """

  def __init__(self, workdir: str | os.PathLike, num_kept: int | None = None):
    directory = pathlib.Path(workdir).absolute() / "checkpoints"
    self._workdir = workdir
    self._manager = ocp.CheckpointManager(
      directory,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=num_kept, create=num_kept is not None
      ),
      # Named here so that shapes can be read without a tree of them.
      item_handlers={
        name: ocp.StandardCheckpointHandler()
        for name in ("params", "opt_state")
      },
    )

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, *_) -> None:
    self._manager.close()

  def latest_step(self) -> int | None:
    """Steps taken by the newest checkpoint; None if there is none."""
    return self._manager.latest_step()

  def save(self, step: int, params: Any, opt_state: Any) -> None:
    """Starts saving; closing waits until it is done."""
    self._manager.save(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardSave(params),
        opt_state=ocp.args.StandardSave(opt_state),
      ),
    )

  def restore(self, params: Any, opt_state: Any) -> tuple[int, Any, Any]:
    """The newest checkpoint's step, parameters and optimizer state.

    Args:
      params, opt_state: trees of the wanted shapes and shardings.
    """
    restored = self._restore(params=params, opt_state=opt_state)
    return self.latest_step(), restored["params"], restored["opt_state"]

  def restore_params(self, params: Any = None) -> tuple[int, Any]:
    """The newest checkpoint's step and parameters.

    Args:
      params: a tree of the wanted shapes and shardings; None for those that
        were saved, on one device.

    Raises:
      InputError: there is no checkpoint, or it is of another model.
    """
    step = self._require_step()
    if params is None:
      device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
      params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
          leaf.shape, leaf.dtype, sharding=device
        ),
        self._manager.item_metadata(step)["params"],
      )
    return step, self._restore(params=params)["params"]

  def _require_step(self):
    step = self.latest_step()
    if step is None:
      raise InputError(
        f"{self._workdir} has no checkpoint yet. Train first:"
        f" python train.py --config=... --workdir={self._workdir}"
      )
    return step

  def _restore(self, **trees):
    step = self._require_step()
    try:
      return self._manager.restore(
        step,
        args=ocp.args.Composite(
          **{
            name: ocp.args.StandardRestore(
              jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
            )
            for name, tree in trees.items()
          }
        ),
      )
    except (ValueError, KeyError, OSError) as error:
      raise InputError(
        f"checkpoint {step} in {self._workdir} cannot be restored: it is"
        f" damaged or of a model of another size ({error})"
      ) from error
