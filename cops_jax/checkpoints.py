"""Orbax checkpoints of what is trained, and the config beside them."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from cops_jax.errors import InputError
from cops_jax.files import write_file

_CONFIG_FILE = "config.json"
# Fields that may differ between the starts of one run, or from a run to its
# evaluation: they do not change what is trained.
_FREE_FIELDS = (
  "data_dir",
  "manual_dir",
  "input",
  "evaluation",
  "train.log_every_steps",
  "train.checkpoint_every_steps",
  "train.num_kept_checkpoints",
)


def claim_workdir(
  workdir: str | os.PathLike, config: Mapping[str, Any]
) -> None:
  """Makes a work directory this config's, or checks that it is.

  Raises:
    InputError: it holds a run with another config; names the differences.
  """
  path = pathlib.Path(workdir) / _CONFIG_FILE
  if path.exists():
    check_config(workdir, config, sections=tuple(config))
  else:
    try:
      write_file(path, json.dumps(config, indent=2) + "\n")
    except OSError as error:
      raise InputError(
        f"cannot write in --workdir={workdir}: {error}"
      ) from error


def check_config(
  workdir: str | os.PathLike,
  config: Mapping[str, Any],
  sections: tuple[str, ...],
) -> None:
  """Checks that a run was made with the same values in some sections.

  Raises:
    InputError: there is no run, or values differ; names them.
  """
  path = pathlib.Path(workdir) / _CONFIG_FILE
  if not path.is_file():
    raise InputError(
      f"{workdir} holds no training run: {path} does not exist. Train first:"
      f" python train.py --config=... --workdir={workdir}"
    )
  try:
    saved = _flatten(json.loads(path.read_text(encoding="utf-8")))
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise InputError(
      f"{path} is damaged ({error}); restore it or train in a new directory"
    ) from error
  asked = _flatten(json.loads(json.dumps(config)))
  differences = [
    f"{name} is {saved.get(name)!r} there and {asked.get(name)!r} here"
    for name in sorted(saved.keys() | asked.keys())
    if saved.get(name) != asked.get(name)
    and name.split(".")[0] in sections
    and not name.startswith(_FREE_FIELDS)
  ]
  if differences:
    raise InputError(
      f"{workdir} holds a run with another config: {'; '.join(differences)}."
      " Use its config or another --workdir."
    )


def _flatten(tree, prefix=""):
  flat = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      flat |= _flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat


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

  def restore_params(self, params: Any) -> tuple[int, Any]:
    """The newest checkpoint's step and parameters.

    Raises:
      InputError: there is no checkpoint, or it is of another model.
    """
    return self.latest_step(), self._restore(params=params)["params"]

  def _restore(self, **trees):
    step = self.latest_step()
    if step is None:
      raise InputError(
        f"{self._workdir} has no checkpoint yet. Train first:"
        f" python train.py --config=... --workdir={self._workdir}"
      )
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
