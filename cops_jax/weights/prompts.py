"""Reads trained prompts from runs and files, and writes them to single files.

A file is in the format of its method's authors (`epoch_N.pth`), or safetensors
with this project's names. Files that this module writes contain the record of
the run that trained the prompts.
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

# The only key of the dictionary in the authors' files.
_ROOT = "prompt_learner"
# Parts for state and category words, which the format of CoPS's authors needs.
_CONDITIONAL = ("prototype_extractor", "category_vae")


def find_record(path: str | os.PathLike) -> Record | None:
  """Returns the record of the run that trained prompts, or None.

  The record of a file that the authors published comes from a recipe.

  Args:
    path: run directory or file, see `load_prompts`.

  Raises:
    InputError: if the path does not exist, or its record is damaged.
  """
  if not is_file(path):
    return read_record(path)
  file = read_tensor_file(path)
  if file.record:
    return from_json(file.record, str(path))
  return published.find_record(file)


def recorded_config(path: str | os.PathLike) -> Any:
  """Returns the config in the record of prompts, as a config of this version.

  Raises:
    InputError: if there is no record, or its config does not fit this version.
  """
  record = find_record(path)
  if record is None:
    raise InputError(
      f"{path} does not contain the config that it was trained with: set"
      " --config, such as --config=visa for the recipe visa"
    )
  return record.to_config(str(path))


def load_prompts(
  path: str | os.PathLike, template: Mapping[str, Any], method: str = "cops"
) -> tuple[dict[str, Any], str]:
  """Loads trained prompts.

  Args:
    path: run directory, whose newest checkpoint is read, or file.
    template: trainable tree of the model, with arrays or their shapes.
    method: method of the model, see `cops_jax.methods`.

  Returns:
    The trainable tree, float32, and its source in words. The VAE's encoder is
    missing if the file has none.

  Raises:
    InputError: if the prompts are missing, damaged or not finite, or belong to
      another method or model. For a file the message lists all missing,
      unexpected and misshapen tensors.
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
      f"{source} contains NaN or infinity in {', '.join(damaged)}. Use an"
      " earlier checkpoint or another file."
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
    f"{path} does not contain the prompts of this config's model",
  )
  if is_authors:
    tensors = authors_names.from_authors_names(tensors, method)
    tensors = flax.traverse_util.flatten_dict(tensors, sep=".")
  params = _unflatten(
    {name: np.asarray(tensors[name], np.float32) for name in wanted}
  )
  if file.content_sha256 not in ("", hash_prompts(params)):
    raise InputError(
      f"{path} is damaged: its tensors changed after they were written. Save"
      " the prompts again, or use a copy."
    )
  return params


def _unflatten(tensors):
  return flax.traverse_util.unflatten_dict(tensors, sep=".")


def require_method(
  record: Record | None, method: str, path: str | os.PathLike
) -> None:
  """Raises InputError if the prompts at a path belong to another method."""
  recorded = record.config.get("method", "cops") if record else method
  if recorded != method:
    raise _other_method(path, recorded, method)


def _other_method(path, found, wanted):
  return InputError(
    f"{path} has prompts of the method {found!r}, but config.method is"
    f" {wanted!r}: use a config of the same method"
  )


def _require_authors_format(trainable, method, path):
  """Raises InputError unless the authors' format can hold the prompts."""
  if method not in authors_names.METHODS:
    raise InputError(
      f"{path}: only {' and '.join(authors_names.METHODS)} have a format of"
      f" their authors, not {method!r}. Save as .safetensors instead."
    )
  if method == "cops" and not all(part in trainable for part in _CONDITIONAL):
    raise InputError(
      f"{path}: the authors' format requires prompts with state and category"
      " words. Save as .safetensors instead."
    )


def _strip_root(tensors, path):
  """Returns the state dict in an authors' file, without its root key."""
  prefix = f"{_ROOT}."
  if not any(name.startswith(prefix) for name in tensors):
    raise InputError(
      f"{path} has no trained prompts: a checkpoint of the authors' code has"
      f" only the key {_ROOT!r}, but this file has"
      f" {', '.join(sorted(tensors)[:3]) or 'no tensors'}."
    )
  return {name.removeprefix(prefix): tensors[name] for name in tensors}


def hash_prompts(trainable: Mapping[str, Any]) -> str:
  """Returns the SHA-256 of the names and values of prompts, in hexadecimal."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(trainable):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.asarray(jax.device_get(leaf)).tobytes())
  return digest.hexdigest()


def to_safetensors(trainable: Mapping[str, Any], record: Record) -> bytes:
  """Returns the bytes of a safetensors file with prompts and their record."""
  flat = flax.traverse_util.flatten_dict(trainable, sep=".")
  digest = hash_prompts(trainable)
  return safetensors.numpy.save(
    {name: np.asarray(array, order="C") for name, array in flat.items()},
    # Several entries would have a random order, and the file random bytes.
    metadata={"record": f"{record.to_json()}{HASH}{digest}"},
  )


def write_prompts(
  path: str | os.PathLike,
  trainable: Mapping[str, Any],
  record: Record,
  backbone: PretrainedBackbone | None = None,
) -> None:
  """Writes trained prompts, float32, and the record of their run.

  Equal prompts and records are written as equal bytes.

  Args:
    path: file that ends in .safetensors, for this project's names, or in .pth,
      for the authors' format.
    trainable: tree of the prompts.
    record: record of the run that trained them.
    backbone: CLIP that AnomalyCLIP's prompts were trained on. With it, a .pth
      file also has the tensors that the authors' module reads and never uses.

  Raises:
    InputError: if the path has another ending or cannot be written, or the
      authors' format cannot hold the prompts.
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
      f"{path} must end in .safetensors or .pth, which selects the format"
    )


def save(workdir: str, out: str) -> str:
  """Writes the newest prompts of a run as one file.

  Args:
    workdir: run directory of a training.
    out: file that ends in .safetensors or .pth, see `write_prompts`.

  Returns:
    A sentence about what was written.

  Raises:
    InputError: if there is no checkpoint, the file cannot be written, or a CLIP
      that the format needs is not available.
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
  return f"wrote the prompts of step {step} of {workdir} to {out}"
