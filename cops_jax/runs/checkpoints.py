"""Checkpoints of the trainable parameters, verified by manifests."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from cops_jax.errors import InputError, MissingRunError, shorten
from cops_jax.files import (
  delete,
  digest_file,
  find_files,
  read_file,
  rename,
  seal,
  sync,
  unseal,
  write_file,
)
from cops_jax.paths import is_address, to_path
from cops_jax.runs.manager import open_manager, restore_as
from cops_jax.runtime.processes import in_first_process

_logger = logging.getLogger(__name__)

_MANIFEST = "manifest.json"  # The SHA-256 of each file of a checkpoint.
_DAMAGED = ".damaged"  # Suffix of a damaged checkpoint's name.


def find_steps(workdir: str | os.PathLike) -> list[int]:
  """Returns the steps of a run directory's checkpoints, ascending.

  Skips checkpoints without a manifest, which were only partly written or
  deleted.

  Raises:
    InputError: if the checkpoints cannot be listed.
  """
  pattern = re.compile(f"([0-9]+)/{_MANIFEST}")
  found = map(pattern.fullmatch, _find_files(_directory(workdir)))
  return sorted(int(match[1]) for match in found if match)


def _find_files(directory):
  try:
    return find_files(directory)
  except OSError as error:
    raise InputError(f"{directory} cannot be read: {error.strerror}") from error


def find_damage(workdir: str | os.PathLike) -> dict[int, list[str]]:
  """Verifies every checkpoint of a run directory.

  Returns:
    A sentence for each damaged file, in a list for each step.

  Raises:
    InputError: if there is no checkpoint.
  """
  steps = find_steps(workdir)
  if not steps:
    raise _no_checkpoint(workdir)
  return {step: _find_damage(_directory(workdir) / str(step)) for step in steps}


def _find_damage(directory):
  """Returns a sentence for each file that differs from the manifest."""
  try:
    expected = dict(unseal(read_file(directory / _MANIFEST))["files"])
  except OSError as error:
    return [f"{_MANIFEST} cannot be read: {error.strerror}"]
  except (ValueError, TypeError, KeyError) as error:
    return [f"{_MANIFEST} is damaged: {error}"]
  damage = []
  for name, sha256 in expected.items():
    try:
      found = digest_file(read_file(directory / name))
    except OSError as error:
      damage.append(f"{name} cannot be read: {error.strerror}")
      continue
    if found != sha256:
      damage.append(f"{name} has the SHA-256 {found}; expected {sha256}")
  return damage


def _write_manifest(directory):
  names = [name for name in find_files(directory) if name != _MANIFEST]
  if not is_address(directory):
    for name in names:  # These files must be on the disk before the manifest.
      sync(directory / name)
  files = {name: digest_file(read_file(directory / name)) for name in names}
  write_file(directory / _MANIFEST, seal({"files": files}, indent=2))


def _directory(workdir):
  path = to_path(workdir)
  return (path if is_address(path) else path.absolute()) / "checkpoints"


def _no_checkpoint(workdir):
  return MissingRunError(f"{workdir} has no checkpoint yet.", workdir)


class Checkpoints:
  """The checkpoints of one run directory; a context manager.

  A checkpoint contains the trainable parameters, the optimizer's state and the
  loss terms that are not yet in metrics.jsonl, but not the frozen backbone.
  Orbax writes it in the background under a temporary name. A checkpoint is
  complete once it has its final name and a manifest. Deletion begins with the
  manifest, so a killed process leaves only whole checkpoints. Every checkpoint
  is verified before it is read. If the newest is damaged, the previous one is
  used.

  In a cluster only the first process saves, because all have the same arrays.

  Args:
    workdir: run directory; need not exist.
    num_kept: number of newest checkpoints to keep; None only reads.

  Raises:
    InputError: if the directory cannot be written.
  """

  def __init__(self, workdir: str | os.PathLike, num_kept: int | None = None):
    self._workdir = workdir
    self._directory = _directory(workdir)
    self._num_kept = num_kept
    self._saving: int | None = None
    self._verbosity = absl_logging.get_verbosity()
    self._report_unraisable = sys.unraisablehook
    # Orbax also logs the errors that it raises, with tracebacks.
    absl_logging.set_verbosity(absl_logging.FATAL)
    sys.unraisablehook = self._skip_closed_loops
    if num_kept is not None:
      in_first_process(self._delete_incomplete)
    self._manager = open_manager(self._directory, self._complete)

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, kind, *_) -> None:
    if kind is None:
      self.wait()
      self._manager.close()
      absl_logging.set_verbosity(self._verbosity)
      sys.unraisablehook = self._report_unraisable
      return
    try:
      self._wait()
    except InputError as error:  # The first error is more useful.
      _logger.error("%s", error)

  def _skip_closed_loops(self, unraisable):
    """Reports an error that no caller can catch, except repeated ones.

    If a disk becomes full during a save, Orbax raises the error of one file and
    closes its event loop. TensorStore then fails to report the other files.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
      self._report_unraisable(unraisable)

  def latest_step(self) -> int | None:
    """Returns the step of the newest checkpoint, unverified, or None."""
    return max(find_steps(self._workdir), default=None)

  def save(
    self,
    step: int,
    params: Any,
    opt_state: Any,
    recent_terms: Sequence[Mapping[str, float]] = (),
  ) -> None:
    """Waits for the previous save and begins to save a new checkpoint.

    Args:
      step: number of completed steps, which names the checkpoint.
      params, opt_state: trees of JAX arrays, which can then be donated.
      recent_terms: loss terms that are not yet in metrics.jsonl.

    Raises:
      InputError: if this or the previous checkpoint cannot be written. Earlier
        checkpoints are unchanged.
    """
    items = ocp.args.Composite(
      params=ocp.args.PyTreeSave(params),
      opt_state=ocp.args.PyTreeSave(opt_state),
      recent_terms=ocp.args.JsonSave(list(recent_terms)),
    )
    num_bytes = sum(
      leaf.nbytes for leaf in jax.tree.leaves((params, opt_state))
    )
    in_first_process(self._save, step, items, num_bytes)

  def _save(self, step, items, num_bytes):
    self._wait()
    try:
      self._require_room(step, num_bytes)
      self._saving = step
      self._manager.save(step, args=items, force=True)
    except Exception as error:  # Orbax and gcsfs raise many types.
      raise self._not_written(step, error) from error

  def check(self) -> None:
    """Raises InputError if a save of this process has failed; does not wait."""
    if not self._manager.is_saving_in_progress():
      self._wait()

  def wait(self) -> None:
    """Waits until the current save, if any, is complete.

    Raises:
      InputError: if the checkpoint cannot be written.
    """
    in_first_process(self._wait)

  def _wait(self):
    if self._saving is None:
      return
    try:
      self._manager.wait_until_finished()
    except Exception as error:  # Orbax's threads raise many types.
      raise self._not_written(self._saving, error) from error
    self._saving = None

  def restore(
    self, params: Any, opt_state: Any
  ) -> tuple[int, Any, Any, list[dict[str, float]]]:
    """Restores the newest undamaged checkpoint.

    Renames damaged checkpoints that are newer, unless `num_kept` is None.

    Args:
      params, opt_state: trees with the shapes and shardings to restore.

    Returns:
      The step, the parameters, the optimizer's state and recent loss terms.

    Raises:
      InputError: if there is no undamaged checkpoint of this model.
    """
    step = in_first_process(self._find_good_step)
    restored = self._restore(
      step,
      recent_terms=ocp.args.JsonRestore(),
      params=restore_as(params),
      opt_state=restore_as(opt_state),
    )
    return step, restored.params, restored.opt_state, restored.recent_terms

  def restore_params(self, params: Any = None) -> tuple[int, Any]:
    """Returns the newest undamaged checkpoint's step and parameters.

    Args:
      params: tree with the shapes and shardings to restore; None restores the
        saved shapes on one device.

    Raises:
      InputError: if there is no undamaged checkpoint of this model.
    """
    step = in_first_process(self._find_good_step)
    if params is None:
      params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
        self._manager.item_metadata(step)["params"].tree,
      )
    return step, self._restore(step, params=restore_as(params)).params

  def _find_good_step(self):
    """Returns the newest undamaged step; see `restore` for damaged steps."""
    damaged = []
    for step in reversed(find_steps(self._workdir)):
      path = self._directory / str(step)
      damage = _find_damage(path)
      if not damage:
        break
      _logger.warning(
        "skipping the damaged checkpoint %s: %s", path, "; ".join(damage)
      )
      damaged.append(path)
    else:
      if not damaged:
        raise _no_checkpoint(self._workdir)
      raise InputError(
        f"every checkpoint in {self._directory} is damaged. Restore the files"
        " from a copy, or train in another run directory. To list the damage,"
        f" run: cops train --workdir={self._workdir} --verify"
      )
    if self._num_kept is not None and damaged:
      for path in damaged:
        aside = path.with_name(path.name + _DAMAGED)
        delete(aside)
        rename(path, aside)
        _logger.warning("renamed %s to %s; it can be deleted", path, aside.name)
      self._manager.reload()
    return step

  def _restore(self, step, **items):
    try:
      return self._manager.restore(step, args=ocp.args.Composite(**items))
    except (ValueError, KeyError, OSError) as error:
      other = is_address(self._directory) and ", or the bucket does not answer"
      raise InputError(
        f"checkpoint {step} in {self._workdir} cannot be restored: it comes"
        f" from a model of another size{other or ''} ({shorten(error)})"
      ) from error

  def _not_written(self, step, error):
    self._saving = None
    return InputError(
      f"checkpoint {step} cannot be written in {self._directory}:"
      f" {_reason(error)}. Earlier checkpoints are unchanged. Free some space;"
      " the same command resumes from the newest checkpoint."
    )

  def _require_room(self, step, num_bytes):
    """Raises OSError if the disk is too full for a checkpoint."""
    # Some versions of Orbax print tracebacks on a full disk. This allocates the
    # bytes, because the free space that the system reports ignores quotas.
    if is_address(self._directory) or not hasattr(os, "posix_fallocate"):
      return
    self._directory.mkdir(parents=True, exist_ok=True)
    path = self._directory / f"{step}.room"
    try:
      with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, num_bytes)
    finally:
      path.unlink(missing_ok=True)

  def _complete(self, path):
    """Writes a manifest and deletes old checkpoints, in the background."""
    if path.parent != self._directory:
      return  # Some versions of Orbax also call this for items' folders.
    if not is_address(path):
      # Orbax expects this file if the run is copied to a bucket.
      (path / "commit_success.txt").write_text("complete\n")
    _write_manifest(path)
    # Orbax's own deletion can leave a partial checkpoint with its manifest, and
    # in a bucket it needs the permission to read the bucket's properties.
    for step in find_steps(self._workdir)[: -self._num_kept]:
      delete(self._directory / str(step) / _MANIFEST)
      delete(self._directory / str(step))

  def _delete_incomplete(self):
    """Deletes incomplete checkpoints of an earlier, interrupted process."""
    names = {name.split("/")[0] for name in _find_files(self._directory)}
    complete = {str(step) for step in find_steps(self._workdir)}
    try:
      for name in names - complete:
        if name[0].isdigit() and not name.endswith(_DAMAGED):
          delete(self._directory / name)
    except OSError as error:
      raise InputError(
        f"{self._directory} cannot be written: {error.strerror or error}"
      ) from error


def _reason(error):
  """Returns the system's message in place of TensorStore's long one."""
  code = re.search(r"os_error_code='(\d+)'", str(error))
  if code:
    return os.strerror(int(code[1]))
  return getattr(error, "strerror", None) or shorten(error)
