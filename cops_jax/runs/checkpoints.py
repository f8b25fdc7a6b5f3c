"""Orbax checkpoints of what is trained, each with a manifest."""

from __future__ import annotations

import logging
import os
import pathlib
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from cops_jax.errors import (
  DamagedRunError,
  InputError,
  MissingRunError,
  shorten,
)
from cops_jax.files import sync
from cops_jax.runs import manifests
from cops_jax.runtime.processes import in_first_process

_logger = logging.getLogger(__name__)

# Marks, at the end of a name, what is being written or deleted; and what was
# found damaged.
_PARTIAL, _DAMAGED = ".partial", ".damaged"
_CHUNK_BYTES = 2**20


def find_steps(workdir: str | os.PathLike) -> list[int]:
  """Steps of the checkpoints in a work directory, unverified, ascending."""
  directory = _directory(workdir)
  if not directory.is_dir():
    return []
  return sorted(
    int(path.name)
    for path in directory.iterdir()
    if path.is_dir() and re.fullmatch("0|[1-9][0-9]*", path.name)
  )


def has_checkpoint(workdir: str | os.PathLike) -> bool:
  """Whether a work directory, which need not exist, has a checkpoint."""
  return bool(find_steps(workdir))


def find_damage(workdir: str | os.PathLike) -> dict[int, list[str]]:
  """What is wrong with every checkpoint, see `manifests.find_damage`.

  Raises:
    InputError: there is no checkpoint.
  """
  steps = find_steps(workdir)
  if not steps:
    raise _no_checkpoint(workdir)
  return {
    step: manifests.find_damage(_directory(workdir) / str(step))
    for step in steps
  }


def _directory(workdir):
  return pathlib.Path(workdir).absolute() / "checkpoints"


def _no_checkpoint(workdir):
  return MissingRunError(f"{workdir} has no checkpoint yet.", str(workdir))


class Checkpoints:
  """The checkpoints of one work directory; use as a context manager.

  Saved are the trainable parameters, the optimizer's state and the loss terms
  not yet in metrics.jsonl, under the number of steps taken. CLIP's frozen
  parameters never are.

  A checkpoint gets its name when it is complete, manifest included, and loses
  it before it is deleted. So a process that is killed leaves whole ones only.
  All are verified before they are read; where the newest is damaged, the next
  one is.

  Args:
    workdir: need not exist.
    num_kept: the newest that are kept; None for reading only.
  """

  def __init__(self, workdir: str | os.PathLike, num_kept: int | None = None):
    self._workdir = workdir
    self._directory = _directory(workdir)
    self._num_kept = num_kept
    self._checkpointer = ocp.Checkpointer(
      # Named here so that shapes can be read without a tree of them.
      ocp.CompositeCheckpointHandler(
        params=ocp.StandardCheckpointHandler(),
        opt_state=ocp.StandardCheckpointHandler(),
        recent_terms=ocp.JsonCheckpointHandler(),
      )
    )
    if num_kept is not None:
      self._delete_partial()

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, *_) -> None:
    self._checkpointer.close()

  def latest_step(self) -> int | None:
    """Steps taken by the newest checkpoint, unverified; None without any."""
    return max(find_steps(self._workdir), default=None)

  def save(
    self,
    step: int,
    params: Any,
    opt_state: Any,
    recent_terms: Sequence[Mapping[str, float]] = (),
  ) -> None:
    """Saves a new step; returns, in all processes, when it is complete.

    Raises:
      InputError: it cannot be written. Older checkpoints are as before.
    """
    partial = self._directory / f"{step}{_PARTIAL}"
    verbosity = absl_logging.get_verbosity()
    try:
      # What Orbax logs of errors, several tracebacks, it raises too. Its
      # threads go on logging them until the process ends.
      absl_logging.set_verbosity(absl_logging.FATAL)
      in_first_process(self._require_room, step, (params, opt_state))
      self._checkpointer.save(
        partial,
        args=ocp.args.Composite(
          params=ocp.args.StandardSave(params),
          opt_state=ocp.args.StandardSave(opt_state),
          recent_terms=ocp.args.JsonSave(list(recent_terms)),
        ),
      )
      in_first_process(self._complete, step, partial)
    except (OSError, ValueError) as error:
      self._delete_partial()
      raise InputError(
        f"checkpoint {step} cannot be written in {self._directory}:"
        f" {_reason(error)}. {self._describe_newest()}"
      ) from error
    absl_logging.set_verbosity(verbosity)

  def restore(
    self, params: Any, opt_state: Any
  ) -> tuple[int, Any, Any, list[dict[str, float]]]:
    """Step, parameters, optimizer state and loss terms of the newest good one.

    Newer, damaged ones are renamed if this may write.

    Args:
      params, opt_state: trees of the wanted shapes and shardings.

    Raises:
      InputError: there is no good checkpoint, or it is of another model.
    """
    step = in_first_process(self._find_good_step)
    restored = self._restore(
      step,
      recent_terms=ocp.args.JsonRestore(),
      params=_standard_restore(params),
      opt_state=_standard_restore(opt_state),
    )
    return step, restored.params, restored.opt_state, restored.recent_terms

  def restore_params(self, params: Any = None) -> tuple[int, Any]:
    """The newest good checkpoint's step and parameters.

    Args:
      params: a tree of the wanted shapes and shardings; None for those that
        were saved, on one device.

    Raises:
      InputError: there is no good checkpoint, or it is of another model.
    """
    step = in_first_process(self._find_good_step)
    if params is None:
      metadata = self._checkpointer.metadata(self._directory / str(step))
      params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
        metadata.item_metadata["params"].tree,
      )
    return step, self._restore(step, params=_standard_restore(params)).params

  def _find_good_step(self):
    """The newest good step; newer ones are set aside."""
    damaged = []
    for step in reversed(find_steps(self._workdir)):
      path = self._directory / str(step)
      damage = manifests.find_damage(path)
      if not damage:
        break
      _logger.warning(
        "checkpoint %s is damaged and not used: %s", path, "; ".join(damage)
      )
      damaged.append(path)
    else:
      if not damaged:
        raise _no_checkpoint(self._workdir)
      raise DamagedRunError(
        f"every checkpoint in {self._directory} is damaged. Restore the files"
        " from a copy, or train in another work directory.",
        str(self._workdir),
      )
    if self._num_kept is not None:
      for path in damaged:
        aside = path.with_name(path.name + _DAMAGED)
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        _logger.warning("renamed %s to %s; it can be deleted", path, aside.name)
    return step

  def _restore(self, step, **args):
    try:
      return self._checkpointer.restore(
        self._directory / str(step), args=ocp.args.Composite(**args)
      )
    except (ValueError, KeyError, OSError) as error:
      raise InputError(
        f"checkpoint {step} in {self._workdir} cannot be restored: it is"
        f" of a model of another size ({error})"
      ) from error

  def _describe_newest(self):
    step = self.latest_step()
    if step is None:
      return "There is no earlier one. Make room and begin again."
    return (
      f"The newest is that of step {step}. Make room and go on from there with"
      " the same command."
    )

  def _require_room(self, step, trees):
    """Fails on a full disk, before Orbax's threads all fail at once.

    It writes: the free space that the system reports ignores quotas and limits.
    """
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(trees))
    self._directory.mkdir(parents=True, exist_ok=True)
    path = self._directory / f"{step}.room{_PARTIAL}"
    zeros = bytes(_CHUNK_BYTES)
    try:
      with path.open("wb") as file:
        for start in range(0, num_bytes, _CHUNK_BYTES):
          file.write(zeros[: num_bytes - start])
    finally:
      path.unlink(missing_ok=True)

  def _complete(self, step, partial):
    manifests.write_manifest(partial)
    partial.rename(self._directory / str(step))
    sync(self._directory)
    self._delete_old()

  def _delete_old(self):
    for step in find_steps(self._workdir)[: -self._num_kept]:
      path = self._directory / str(step)
      path.rename(path.with_name(path.name + _PARTIAL))
    self._delete_partial()

  def _delete_partial(self):
    if jax.process_index() != 0:
      return
    for path in self._directory.glob(f"*{_PARTIAL}*"):
      if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
      else:
        path.unlink(missing_ok=True)


def _standard_restore(tree):
  """Asks for a tree's shapes and shardings, by default all on one device.

  Orbax would ask for the devices that saved, and refuse others.
  """
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

  def describe(leaf):
    struct = ocp.utils.to_shape_dtype_struct(leaf)
    return jax.ShapeDtypeStruct(
      struct.shape, struct.dtype, sharding=struct.sharding or device
    )

  return ocp.args.StandardRestore(jax.tree.map(describe, tree))


def _reason(error):
  """The system's message in place of TensorStore's, which takes pages."""
  code = re.search(r"os_error_code='(\d+)'", str(error))
  if code:
    return os.strerror(int(code[1]))
  return getattr(error, "strerror", None) or shorten(error)
