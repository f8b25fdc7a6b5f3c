"""Trained prompts, read from runs and files and written to single files.

They are in the checkpoints of a work directory, in a file of their method's
authors (`epoch_N.pth`), or in safetensors under this project's own names. Files
written here carry the record of the run that trained them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import safetensors.numpy

from cops_jax.errors import InputError
from cops_jax.files import is_file, write_file
from cops_jax.paths import to_path
from cops_jax.runs import record as records
from cops_jax.runs.record import Record, check_backbone, from_json, read_record
from cops_jax.weights import authors_names, published, torch_files
from cops_jax.weights.backbone import PretrainedBackbone, load_backbone
from cops_jax.weights.tensor_files import HASH, check_tensors, read_tensor_file

# The one key of the authors' files.
_ROOT = "prompt_learner"
# Parts that CoPS's authors' files always have, of state and category words.
_CONDITIONAL = ("prototype_extractor", "category_vae")


def find_record(path: str | os.PathLike) -> Record | None:
  """Returns the record of prompts' training; None if they have none.

  The authors' published files have one that stands in for theirs.

  Args:
    path: a work directory or a file; see `load_prompts`.

  Raises:
    InputError: there is nothing at the path, or its record is damaged.
  """
  if not is_file(path):
    return read_record(path)
  file = read_tensor_file(path)
  if file.record:
    return from_json(file.record, str(path))
  return published.find_record(file)


def recorded_config(path: str | os.PathLike) -> Any:
  """Returns the config of the run that trained prompts, as this version's.

  Raises:
    InputError: there is no record, or its config does not fit this version.
  """
  record = find_record(path)
  if record is None:
    raise InputError(
      f"{path} does not say with which config it was trained; give one, such"
      " as that of the recipe visa, --config=visa"
    )
  return record.to_config(str(path))


def load_prompts(
  path: str | os.PathLike, template: Mapping[str, Any], method: str = "cops"
) -> tuple[dict[str, Any], str]:
  """Loads trained prompts; returns them and their source, in words.

  Args:
    path: a work directory, whose newest checkpoint is read, or a file.
    template: the trainable tree that a model needs; arrays or their shapes.
    method: method that needs them, see `cops_jax.methods`.

  Returns:
    The trainable parameters, float32. The VAE's encoder is absent if a file has
    none.

  Raises:
    InputError: there is no checkpoint, it is damaged, of another method or of
      another model, or not all of its numbers are finite; names every missing,
      unexpected and misshapen tensor of a file at once.
  """
  if is_file(path):
    params, source = _read_file(path, template, method), str(path)
  else:
    require_method(records.find_record(path), method, path)
    from cops_jax.runs.checkpoints import Checkpoints  # Orbax is slow.

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
  tensors = authors_names.from_uniadet_head(file.tensors)
  if tensors and method != "uniadet":
    raise _other_method(path, "uniadet", method)
  is_authors = not tensors and file.format != "safetensors"
  tensors = tensors or file.tensors
  if is_authors:
    tensors = _strip_root(tensors, path)
    found = authors_names.find_method(tensors) or method
    if found != method:
      raise _other_method(path, found, method)
    _require_authors_format(template, method, path)
    tensors = authors_names.select(tensors)
  wanted = flax.traverse_util.flatten_dict(template, sep=".")
  if not any(name.startswith(authors_names.ENCODER) for name in tensors):
    wanted = {
      name: leaf
      for name, leaf in wanted.items()
      if not name.startswith(authors_names.ENCODER)
    }
  expected = {name: np.empty(leaf.shape) for name, leaf in wanted.items()}
  if is_authors:
    expected = authors_names.to_authors_names(_unflatten(expected), method)
  check_tensors(
    tensors,
    {name: array.shape for name, array in expected.items()},
    f"{path} does not hold the prompts of this config's model",
  )
  if is_authors:
    tensors = authors_names.from_authors_names(tensors, method)
    tensors = flax.traverse_util.flatten_dict(tensors, sep=".")
  params = _unflatten(
    {name: np.asarray(tensors[name], np.float32) for name in wanted}
  )
  if file.content_sha256 not in ("", hash_prompts(params)):
    raise InputError(
      f"{path} is damaged: its tensors are not those that were written. Save"
      " them again, or take a copy."
    )
  return params


def _unflatten(tensors):
  return flax.traverse_util.unflatten_dict(tensors, sep=".")


def require_method(
  record: Record | None, method: str, path: str | os.PathLike
) -> None:
  """Raises InputError if the prompts at a path are of another method."""
  recorded = record.config.get("method", "cops") if record else method
  if recorded != method:
    raise _other_method(path, recorded, method)


def _other_method(path, found, wanted):
  return InputError(
    f"{path} holds prompts of the method {found!r}, and config.method is"
    f" {wanted!r}"
  )


def _require_authors_format(trainable, method, path):
  """Raises InputError unless the authors' format can hold the prompts."""
  if method not in authors_names.METHODS:
    raise InputError(
      f"{path}: the method {method!r} has no authors' format, only"
      f" {' and '.join(authors_names.METHODS)} have; .safetensors holds any"
    )
  if method == "cops" and not all(part in trainable for part in _CONDITIONAL):
    raise InputError(
      f"{path}: the authors' format has no prompts without state and category"
      " words; .safetensors has"
    )


def _strip_root(tensors, path):
  """Returns the authors' state dict."""
  prefix = f"{_ROOT}."
  if not any(name.startswith(prefix) for name in tensors):
    raise InputError(
      f"{path} holds no trained prompts: a checkpoint of the authors' code is a"
      f" dictionary with the one key {_ROOT!r}. It has"
      f" {', '.join(sorted(tensors)[:3]) or 'no tensors'}."
    )
  return {name.removeprefix(prefix): tensors[name] for name in tensors}


def hash_prompts(trainable: Mapping[str, Any]) -> str:
  """Returns the SHA-256 of the parameters' names and values, in hexadecimal."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(trainable):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.asarray(jax.device_get(leaf)).tobytes())
  return digest.hexdigest()


def to_safetensors(trainable: Mapping[str, Any], record: Record) -> bytes:
  """Returns a safetensors file of trained prompts and a record."""
  flat = flax.traverse_util.flatten_dict(trainable, sep=".")
  digest = hash_prompts(trainable)
  return safetensors.numpy.save(
    {name: np.asarray(array, order="C") for name, array in flat.items()},
    # One entry: the order of several is random, and so are the file's bytes.
    metadata={"record": f"{record.to_json()}{HASH}{digest}"},
  )


def write_prompts(
  path: str | os.PathLike,
  trainable: Mapping[str, Any],
  record: Record,
  backbone: PretrainedBackbone | None = None,
) -> None:
  """Writes trained prompts, float32, and the record of their run.

  The same input gives the same bytes.

  Args:
    path: ends in .safetensors, for this project's names, or in .pth, for the
      authors' format.
    trainable: the parameters.
    record: record of the run that trained them.
    backbone: CLIP that AnomalyCLIP's were trained on; with it, an authors' file
      has all that their module wants to find.

  Raises:
    InputError: the path has another ending or cannot be written, or the
      authors' format has no such prompts.
  """
  path = to_path(path)
  if path.suffix == ".pth":
    method = record.config.get("method", "cops")
    _require_authors_format(trainable, method, path)
    tensors = authors_names.to_authors_names(trainable, method)
    if backbone:
      tensors |= authors_names.unused_tensors(trainable, backbone)
    torch_files.write(path, tensors, _ROOT, record.to_json())
  elif path.suffix == ".safetensors":
    write_file(path, to_safetensors(trainable, record))
  else:
    raise InputError(
      f"{path} must end in .safetensors or .pth, which choose the format"
    )


def save(workdir: str, out: str) -> str:
  """Writes the newest prompts of a work directory as one file.

  Args:
    workdir: work directory of a training run.
    out: see `write_prompts`.

  Returns:
    A sentence about what was written.

  Raises:
    InputError: there is no checkpoint, or the file cannot be written, or the
      run's CLIP is needed and not available.
  """
  record = read_record(workdir)
  from cops_jax.runs.checkpoints import Checkpoints  # Orbax is slow.

  with Checkpoints(workdir) as saved:
    step, trainable = saved.restore_params()
  backbone = None
  if out.endswith(".pth") and record.config.get("method") == "anomalyclip":
    backbone = load_backbone(record.to_config(workdir))
    check_backbone(record, backbone.sha256, workdir, allow_other_backbone=False)
  write_prompts(out, trainable, record, backbone)
  return f"{out}: the prompts of step {step} of {workdir}"
