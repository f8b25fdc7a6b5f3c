"""Trained prompts, read from runs and files and written to single files.

They are in the checkpoints of a work directory, in a file of the code of their
method's authors (`epoch_N.pth`), or in safetensors under this project's own
names. Files written here carry the record of the run that trained them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import flax.traverse_util
import jax
import numpy as np
import safetensors.numpy

from cops_jax.errors import InputError
from cops_jax.files import exists, is_file, write_file
from cops_jax.paths import to_path
from cops_jax.runs import record as records
from cops_jax.runs.checkpoints import Checkpoints
from cops_jax.runs.record import Record, from_json, read_record
from cops_jax.weights import (
  anomalyclip_names,
  cops_names,
  tensor_files,
  torch_files,
)
from cops_jax.weights.tensor_files import check_tensors, read_tensor_file

if TYPE_CHECKING:
  from cops_jax.weights.clip import PretrainedCLIP

# The one key of the authors' files.
_ROOT = "prompt_learner"
# By the method that they belong to; others have none.
_AUTHORS_FORMATS = {"cops": cops_names, "anomalyclip": anomalyclip_names}


def find_record(path: str | os.PathLike) -> Record | None:
  """The record of the run that trained a checkpoint.

  Args:
    path: a work directory or a file; see `load_prompts`.

  Returns:
    None for a file that has none, as the authors' own.

  Raises:
    InputError: there is nothing at the path, or its record is damaged.
  """
  path = to_path(path)
  if path.suffix and not exists(path):
    raise InputError(
      f"{path} does not exist; trained prompts are in a work directory, in the"
      " authors' epoch_N.pth or in an exported file"
    )
  if not is_file(path):
    return read_record(path)
  text = read_tensor_file(path).record
  return from_json(text, str(path)) if text else None


def recorded_config(path: str | os.PathLike) -> Any:
  """The config of the run that trained a checkpoint, as one of this version.

  Args:
    path: a work directory or a file; see `load_prompts`.

  Raises:
    InputError: there is no record, or its config does not fit this version.
  """
  record = find_record(path)
  if record is None:
    raise InputError(
      f"{path} does not say with which config it was trained; add --config"
    )
  return record.to_config(str(path))


def load_prompts(
  path: str | os.PathLike, template: Mapping[str, Any], method: str = "cops"
) -> tuple[dict[str, Any], str]:
  """Trained prompts and where they are from, in words.

  Args:
    path: a work directory, whose newest checkpoint is read, or a file.
    template: the trainable tree that a model needs; arrays or their shapes.
    method: that the prompts are for, see `cops_jax.methods`.

  Returns:
    The trainable parameters, float32. A file may lack the VAE's encoder: then
    they do too.

  Raises:
    InputError: there is no checkpoint, it is damaged, of another method or of
      another model, or not all of its numbers are finite; names every missing,
      unexpected and misshapen tensor of a file at once.
  """
  if is_file(path):
    params, source = _read_file(path, template, method), str(path)
  else:
    require_method(records.find_record(path), method, path)
    with Checkpoints(path) as saved:
      step, params = saved.restore_params(template)
    source = f"step {step} of {path}"
  damaged = [
    name
    for name, leaf in flax.traverse_util.flatten_dict(params, sep=".").items()
    if not np.isfinite(jax.device_get(leaf)).all()
  ]
  if damaged:
    raise InputError(
      f"{source} holds NaN or infinity in {', '.join(damaged)}: prompts that"
      " cannot be used. Take an earlier checkpoint or another file."
    )
  return params, source


def _read_file(path, template, method):
  file = read_tensor_file(path)
  if file.record:
    require_method(from_json(file.record, str(path)), method, path)
  tensors, names = file.tensors, None
  if file.format != "safetensors":
    tensors = _strip_root(tensors, path)
    names = _authors_format(tensors, method, path)
    tensors = names.select(tensors)
    _require_representable(names, template, path)
  wanted = flax.traverse_util.flatten_dict(template, sep=".")
  if not any(name.startswith(cops_names.ENCODER) for name in tensors):
    wanted = {
      name: leaf
      for name, leaf in wanted.items()
      if not name.startswith(cops_names.ENCODER)
    }
  shapes = {name: leaf.shape for name, leaf in wanted.items()}
  if names:
    zeros = {name: np.zeros(shape) for name, shape in shapes.items()}
    zeros = flax.traverse_util.unflatten_dict(zeros, sep=".")
    shapes = {
      name: array.shape for name, array in names.to_authors_names(zeros).items()
    }
  check_tensors(
    tensors, shapes, f"{path} does not hold the prompts of this config's model"
  )
  if names:
    tensors = names.from_authors_names(tensors)
    tensors = flax.traverse_util.flatten_dict(tensors, sep=".")
  params = {name: np.asarray(tensors[name], np.float32) for name in wanted}
  params = flax.traverse_util.unflatten_dict(params, sep=".")
  if file.content_sha256 not in ("", hash_prompts(params)):
    raise InputError(
      f"{path} is damaged: its tensors are not those that were written. Export"
      " them again, or take a copy."
    )
  return params


def require_method(
  record: Record | None, method: str, path: str | os.PathLike
) -> None:
  """Checks that prompts are of the method that they are wanted for.

  Args:
    record: of their run; None if there is none.
    method: wanted.
    path: of the prompts, for errors.

  Raises:
    InputError: they are of another; names both.
  """
  recorded = record.config.get("method", "cops") if record else method
  if recorded != method:
    raise _other_method(path, recorded, method)


def _other_method(path, found, wanted):
  return InputError(
    f"{path} holds prompts of the method {found!r}, and config.method is"
    f" {wanted!r}"
  )


def _authors_format(tensors, method, path):
  """The names of the method's authors, if they are the file's."""
  for name, names in _AUTHORS_FORMATS.items():
    if name != method and names.is_own(tensors):
      raise _other_method(path, name, method)
  if method not in _AUTHORS_FORMATS:
    raise _no_format(path, method)
  return _AUTHORS_FORMATS[method]


def _no_format(path, method):
  return InputError(
    f"{path}: the method {method!r} has no authors' format, only"
    f" {' and '.join(_AUTHORS_FORMATS)} have; .safetensors holds any"
  )


def _require_representable(names, trainable, path):
  reason = names.why_not(trainable)
  if reason:
    raise InputError(f"{path}: the authors' format {reason}; .safetensors has")


def _strip_root(tensors, path):
  """The authors' state dict."""
  prefix = f"{_ROOT}."
  if not any(name.startswith(prefix) for name in tensors):
    raise InputError(
      f"{path} holds no trained prompts: a checkpoint of the authors' code is a"
      f" dictionary with the one key {_ROOT!r}. It has"
      f" {', '.join(sorted(tensors)[:3]) or 'no tensors'}."
    )
  return {name.removeprefix(prefix): tensors[name] for name in tensors}


def hash_prompts(trainable: Mapping[str, Any]) -> str:
  """SHA-256 of the parameters' names and values, in hexadecimal."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(trainable):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.asarray(jax.device_get(leaf)).tobytes())
  return digest.hexdigest()


def to_safetensors(trainable: Mapping[str, Any], record: Record) -> bytes:
  """A file of trained prompts, under this project's names, and their record.

  The same input gives the same bytes.
  """
  flat = flax.traverse_util.flatten_dict(trainable, sep=".")
  digest = hash_prompts(trainable)
  return safetensors.numpy.save(
    {name: np.asarray(array, order="C") for name, array in flat.items()},
    # One entry: of several the order is random, and so the file's bytes.
    metadata={"record": tensor_files.add_hash(record.to_json(), digest)},
  )


def write_prompts(
  path: str | os.PathLike,
  trainable: Mapping[str, Any],
  record: Record,
  clip: PretrainedCLIP | None = None,
) -> None:
  """Writes trained prompts, float32, and the record of their run.

  The same input gives the same bytes.

  Args:
    path: ends in .safetensors, for this project's names, or in .pth, for the
      authors' format.
    trainable: the parameters.
    record: of the run that trained them.
    clip: that they were trained on; with it an authors' file has all that their
      module wants to find.

  Raises:
    InputError: another ending, the file cannot be written, or the authors'
      format has no such prompts.
  """
  path = to_path(path)
  if path.suffix == ".pth":
    method = record.config.get("method", "cops")
    if method not in _AUTHORS_FORMATS:
      raise _no_format(path, method)
    names = _AUTHORS_FORMATS[method]
    _require_representable(names, trainable, path)
    tensors = names.to_authors_names(trainable)
    if clip:
      tensors |= names.unused_tensors(trainable, clip)
    torch_files.write_tensors(path, tensors, _ROOT, record.to_json())
  elif path.suffix == ".safetensors":
    write_file(path, to_safetensors(trainable, record))
  else:
    raise InputError(
      f"{path} must end in .safetensors or .pth, which choose the format"
    )
