"""Orbax checkpoints of what is trained, each with a manifest."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from cops_jax import buckets
from cops_jax.errors import (
  DamagedRunError,
  InputError,
  MissingRunError,
  shorten,
)
from cops_jax.files import delete, find_files, sync
from cops_jax.paths import AnyPath, is_address, to_path
from cops_jax.runs import manifests
from cops_jax.runtime.processes import in_first_process

_logger = logging.getLogger(__name__)

# Marks, at the end of a name, what is being written or deleted; and what was
# found damaged.
_PARTIAL, _DAMAGED = ".partial", ".damaged"
# Until a save that makes no progress, as its disk or bucket has gone, fails.
_SAVE_SECONDS = 300
# That a run which ends with an error waits for a save under way.
_LAST_SECONDS = 60
# That what a failed save leaves is deleted again.
_LEFTOVER_SECONDS = 5


def find_steps(workdir: str | os.PathLike) -> list[int]:
  """Steps of the checkpoints in a work directory, unverified, ascending.

  Raises:
    InputError: it is in a bucket whose server does not say.
  """
  names = _find_names(_directory(workdir))
  return sorted(
    int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name)
  )


def _find_names(directory):
  """Of complete checkpoints, and of what has a mark."""
  if not is_address(directory):
    if not directory.is_dir():
      return []
    return [path.name for path in directory.iterdir() if path.is_dir()]
  try:
    files = find_files(directory)
  except OSError as error:
    raise InputError(f"{directory} cannot be read: {error.strerror}") from error
  # A folder there cannot be renamed: it is complete once it has a manifest.
  folder, ending = "[^/]*", f"/{manifests.MANIFEST}"
  return [
    name.removesuffix(ending)
    for name in files
    if re.fullmatch(folder + re.escape(ending), name)
  ]


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
  path = to_path(workdir)
  return (path if is_address(path) else path.absolute()) / "checkpoints"


def _no_checkpoint(workdir):
  return MissingRunError(f"{workdir} has no checkpoint yet.", str(workdir))


class Checkpoints:
  """The checkpoints of one work directory; use as a context manager.

  Saved are the trainable parameters, the optimizer's state and the loss terms
  not yet in metrics.jsonl, under the number of steps taken. CLIP's frozen
  parameters never are.

  They are written in the background, one at a time. A checkpoint gets its name,
  or in a bucket its manifest, when all else of it is there, and loses it before
  it is deleted. So a process that is killed leaves whole ones only. All are
  verified before they are read; where the newest is damaged, the next one is.

  Args:
    workdir: need not exist.
    num_kept: the newest that are kept; None for reading only.

  Raises:
    InputError: there is no way to keep checkpoints at such an address.
  """

  def __init__(self, workdir: str | os.PathLike, num_kept: int | None = None):
    self._workdir = workdir
    self._directory = _directory(workdir)
    self._num_kept = num_kept
    self._saving: int | None = None
    self._verbosity = absl_logging.get_verbosity()
    if str(self._directory).startswith("s3:"):
      raise InputError(
        f"{workdir}: Orbax keeps no checkpoints in s3:// buckets; give a local"
        " path or gs://BUCKET/PATH"
      )
    if num_kept is not None:
      # What Orbax logs of errors, several tracebacks, it raises too. Its
      # threads go on logging them until the process ends.
      absl_logging.set_verbosity(absl_logging.FATAL)
      _hush_threads()
      self._begin_writing()
    self._checkpointer = ocp.AsyncCheckpointer(
      # Named here so that shapes can be read without a tree of them.
      ocp.CompositeCheckpointHandler(
        params=_arrays_handler(),
        opt_state=_arrays_handler(),
        recent_terms=ocp.JsonCheckpointHandler(),
      ),
      async_options=ocp.AsyncOptions(
        timeout_secs=_SAVE_SECONDS,
        # Else what fails there is waited for by Orbax's other threads.
        create_directories_asynchronously=False,
      ),
      temporary_path_class=_completed_by(
        self._complete, is_address(self._directory)
      ),
    )

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, kind, *_) -> None:
    if kind is None:
      self.wait()
      self._checkpointer.close()
      absl_logging.set_verbosity(self._verbosity)
    elif self._saving is not None:
      # It may be what ends the run that nothing can be written any more.
      ending = threading.Thread(target=self._wait_after_error, daemon=True)
      ending.start()
      ending.join(_LAST_SECONDS)

  def _wait_after_error(self):
    try:
      self.wait()
    except InputError as error:
      _logger.error("%s", error)

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
    """Begins to save a new step, once the one before is complete.

    Args:
      step: that the checkpoint is named by.
      params, opt_state: trees of JAX's arrays, which may be changed when this
        returns.
      recent_terms: see the class.

    Raises:
      InputError: this or the one before cannot be written. Older checkpoints
        are as before.
    """
    self.wait()
    try:
      in_first_process(self._require_room, step, (params, opt_state))
      self._saving = step
      self._checkpointer.save(
        self._partial(step),
        args=ocp.args.Composite(
          params=ocp.args.PyTreeSave(params),
          opt_state=ocp.args.PyTreeSave(opt_state),
          recent_terms=ocp.args.JsonSave(list(recent_terms)),
        ),
      )
    except Exception as error:  # Of Orbax and a bucket's client, of any kind.
      raise self._not_written(step, error) from error

  def check(self) -> None:
    """Looks, without waiting, whether the save under way has failed here.

    Raises:
      InputError: it has.
    """
    if self._saving is None:
      return
    try:
      self._checkpointer.check_for_errors()
    except Exception as error:  # Of Orbax's threads, of any kind.
      raise self._not_written(self._saving, error) from error

  def wait(self) -> None:
    """Returns when what was begun to save is complete.

    Raises:
      InputError: it cannot be written.
    """
    if self._saving is None:
      return
    try:
      self._checkpointer.wait_until_finished()
    except Exception as error:  # Of Orbax's threads, of any kind.
      raise self._not_written(self._saving, error) from error
    self._saving = None

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
      params=_restore_as(params),
      opt_state=_restore_as(opt_state),
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
    return step, self._restore(step, params=_restore_as(params)).params

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
        delete(aside)
        (buckets.rename if is_address(path) else os.rename)(path, aside)
        _logger.warning("renamed %s to %s; it can be deleted", path, aside.name)
    return step

  def _restore(self, step, **args):
    try:
      return self._checkpointer.restore(
        self._directory / str(step), args=ocp.args.Composite(**args)
      )
    except (ValueError, KeyError, OSError) as error:
      other = is_address(self._directory) and ", or its bucket does not answer"
      raise InputError(
        f"checkpoint {step} in {self._workdir} cannot be restored: it is"
        f" of a model of another size{other or ''} ({shorten(error)})"
      ) from error

  def _describe_newest(self):
    step = self.latest_step()
    if step is None:
      return "There is no earlier one. Make room and begin again."
    return (
      f"The newest is that of step {step}. Make room and go on from there with"
      " the same command."
    )

  def _not_written(self, step, error):
    self._saving = None
    advice = (
      "Older ones are as before. The same command goes on from the newest."
    )
    if not is_address(self._directory):  # Which may not answer for long.
      self._delete_failed()
      advice = self._describe_newest()
    return InputError(
      f"checkpoint {step} cannot be written in {self._directory}:"
      f" {_reason(error)}. {advice}"
    )

  def _delete_failed(self):
    """Orbax's other threads go on for a moment, and make folders anew."""
    deadline = time.monotonic() + _LEFTOVER_SECONDS
    is_gone = jax.process_index() != 0
    while not is_gone and time.monotonic() < deadline:
      with contextlib.suppress(OSError):
        self._delete_partial()
      time.sleep(0.2)
      is_gone = not any(self._directory.glob(f"*{_PARTIAL}*"))

  def _partial(self, step):
    mark = "" if is_address(self._directory) else _PARTIAL
    return self._directory / f"{step}{mark}"

  def _require_room(self, step, trees):
    """Fails on a full disk, before Orbax's threads all fail at once.

    It allocates: the free space that the system reports ignores quotas and
    limits.
    """
    if is_address(self._directory) or not hasattr(os, "posix_fallocate"):
      return
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(trees))
    self._directory.mkdir(parents=True, exist_ok=True)
    path = self._directory / f"{step}.room{_PARTIAL}"
    try:
      with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, num_bytes)
    finally:
      path.unlink(missing_ok=True)

  def _complete(self, partial):
    """Of the first process, in the background, when Orbax has written all."""
    if not is_address(partial):
      # If the run is copied to a bucket, Orbax looks for this file.
      (partial / "commit_success.txt").write_text("complete\n")
    manifests.write_manifest(partial)
    if not is_address(partial):
      partial.rename(partial.with_name(partial.name.removesuffix(_PARTIAL)))
      sync(self._directory)
    self._delete_old()

  def _delete_old(self):
    for step in find_steps(self._workdir)[: -self._num_kept]:
      path = self._directory / str(step)
      if is_address(path):
        delete(path / manifests.MANIFEST)
        delete(path)
      else:
        path.rename(path.with_name(path.name + _PARTIAL))
        delete(path.with_name(path.name + _PARTIAL))

  def _begin_writing(self):
    try:
      in_first_process(self._delete_partial)
    except OSError as error:
      raise InputError(
        f"{self._directory} cannot be written: {error.strerror or error}"
      ) from error

  def _delete_partial(self):
    """Of an earlier process, or of a save that failed; in the first process."""
    if jax.process_index() != 0:
      return
    if is_address(self._directory):
      complete = _find_names(self._directory)
      names = {name.partition("/")[0] for name in find_files(self._directory)}
      for name in names.difference(complete):
        if not name.endswith(_DAMAGED):
          delete(self._directory / name)
    else:
      for path in self._directory.glob(f"*{_PARTIAL}*"):
        delete(path)


def _arrays_handler():
  """Of arrays that every device has whole; the first process writes them.

  By default Orbax has each device cut its part off every array, which takes
  longer than to write arrays as small as these.
  """
  arrays = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
  return ocp.PyTreeCheckpointHandler(
    type_handler_registry=ocp.type_handlers.create_type_handler_registry(
      (jax.Array, arrays)
    )
  )


def _completed_by(
  complete: Callable[[AnyPath], None], is_address: bool
) -> type[ocp.path.atomicity.TemporaryPathBase]:
  """Orbax's way of finishing a checkpoint's folder, and one more step."""
  atomicity = ocp.path.atomicity
  way = (
    atomicity.CommitFileTemporaryPath
    if is_address
    else atomicity.AtomicRenameTemporaryPath
  )

  class Completed(way):
    async def finalize(self):
      await super().finalize()
      complete(to_path(self.get_final()))

  return Completed


@functools.cache
def _hush_threads():
  """Python shows what a failed save leaves of Orbax's coroutines, with traces.

  Some of it when the process ends, and before the save is known to have failed.
  """
  warnings.filterwarnings("ignore", "coroutine .* was never", RuntimeWarning)
  show = sys.unraisablehook

  def show_others(unraisable):
    if "Event loop is closed" not in str(unraisable.exc_value):
      show(unraisable)

  sys.unraisablehook = show_others


def _restore_as(tree):
  """Asks for a tree's shapes and shardings, by default all on one device.

  Orbax would ask for the devices that saved, and refuse others.
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


def _reason(error):
  """The system's message in place of TensorStore's, which takes pages."""
  code = re.search(r"os_error_code='(\d+)'", str(error))
  if code:
    return os.strerror(int(code[1]))
  return getattr(error, "strerror", None) or shorten(error)
