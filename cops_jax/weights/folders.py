"""Folders with a model's config and tensors in the format of the hub."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Collection
from typing import Any

from cops_jax.errors import InputError
from cops_jax.paths import is_address
from cops_jax.weights.locate import locate, split_hub_name
from cops_jax.weights.tensor_files import TensorFile, read_tensor_file

CONFIG = "config.json"
# Values of config.backbone.kind by the model_type in config.json.
_KINDS = {
  "clip": "clip",
  "dinov2_with_registers": "dinov2",
  "dinov3_vit": "dinov3",
}


def find(
  weights: str, revision: str, more: Collection[str], tensors: Collection[str]
) -> pathlib.Path:
  """Returns a folder or file of weights on this host; downloads it if needed.

  Args:
    weights: path, address or name on the hub, see `locate.locate`.
    revision: branch, tag or commit on the hub; empty for the newest.
    more: names of the files needed in addition to config.json and tensors.
    tensors: names of files of tensors, in order of preference; one is needed.

  Raises:
    InputError: if the weights cannot be located, or are not on the hub but have
      a revision.
  """
  if revision and (is_address(weights) or not split_hub_name(weights)):
    raise InputError(
      f"config.backbone.revision is {revision!r}, but {weights!r} is not a"
      " model on the hub: leave the field empty"
    )
  return locate(
    weights, lambda names: needed_files(names, more, tensors), revision
  )


def needed_files(
  names: Collection[str], more: Collection[str], tensors: Collection[str]
) -> list[str]:
  """Returns those of a folder's files that are needed; see `find`.

  If `names` contains only an empty name, the folder is a single file.
  """
  first = [name for name in tensors if name in names][:1]
  needed = (CONFIG, *more, *first, "")
  return [name for name in needed if name in names]


def read_config(folder: pathlib.Path, kind: str) -> dict[str, Any]:
  """Returns the values of a folder's config.json.

  Raises:
    InputError: if the file is missing, damaged or of another kind of backbone.
  """
  path = require_file(folder / CONFIG, kind)
  try:
    values = json.loads(path.read_text("utf-8"))
    model_type = values.get("model_type", kind)
  except (ValueError, RecursionError) as error:
    raise InputError(f"{path} is not JSON: {error}") from error
  except AttributeError as error:
    raise InputError(f"{path} does not describe a model: {error}") from error
  found = _KINDS.get(model_type, kind if model_type == kind else model_type)
  if found == kind and (kind, model_type) != ("dinov2", "dinov2"):
    return values
  if model_type == "dinov2":
    raise InputError(
      f"{path} describes a DINOv2 without registers: choose one with registers,"
      " such as facebook/dinov2-with-registers-large"
    )
  advice = "choose other weights"
  if found in _KINDS.values():
    advice = f"choose other weights, or set config.backbone.kind to {found!r}"
  raise InputError(
    f"{path} has the model_type {model_type!r}, but config.backbone.kind is"
    f" {kind!r}: {advice}"
  )


def read_tensors(
  folder: pathlib.Path,
  kind: str,
  names: Collection[str],
  num_layers: int,
  sha256: str,
) -> TensorFile:
  """Returns the tensors of a folder.

  Args:
    folder: folder of the model.
    kind: kind of backbone, for messages.
    names: possible names of the file, in order of preference.
    num_layers: number of layers that config.json describes.
    sha256: expected hash of the file; empty accepts any.

  Raises:
    InputError: if the file is missing or damaged, has another hash, or has too
      few tensors for the layers.
  """
  paths = [folder / name for name in names if (folder / name).is_file()]
  path = paths[0] if paths else require_file(folder / next(iter(names)), kind)
  file = read_tensor_file(path, sha256)
  # A damaged number of layers could take forever to build.
  if num_layers > len(file.tensors):
    raise InputError(
      f"{folder / CONFIG} describes {num_layers} layers, but {path} has only"
      f" {len(file.tensors)} tensors"
    )
  return file


def require_file(path: pathlib.Path, kind: str) -> pathlib.Path:
  """Returns a path; raises InputError if it is not a file."""
  if path.is_file():
    return path
  more = ", vocab.json, merges.txt" if kind == "clip" else ""
  raise InputError(
    f"{path} does not exist; a Hugging Face folder of {kind!r} contains"
    f" {CONFIG}, model.safetensors{more}"
  )
