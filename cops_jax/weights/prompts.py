"""Trained prompts, read from runs and files and written to single files.

They are in the checkpoints of a work directory, in a file of the authors' code
(`epoch_N.pth`), or in safetensors under this project's own names. Files written
here carry the record of the run that trained them.
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
from cops_jax.files import exists, is_file, write_file
from cops_jax.paths import to_path
from cops_jax.runs.checkpoints import Checkpoints
from cops_jax.runs.record import Record, from_json, read_record
from cops_jax.weights import tensor_files, torch_files
from cops_jax.weights.tensor_files import check_tensors, read_tensor_file

# The one key of the authors' files.
_ROOT = "prompt_learner"
_DEEP_PROMPTS = "compound_prompts_text."
# Left over in files of the authors' training; nothing reads them.
_UNUSED = ("projector", "extractor_.", "token_", "tokenized_")
# Evaluation does without it, and the authors' released files do too.
_ENCODER = ("category_vae.encoder", "category_vae.mean", "category_vae.log_var")

# Parts that the authors' format always has, and the words that they serve.
_CONDITIONAL_WORDS = {
  "prototype_extractor": "state",
  "category_vae": "category",
}

_LINEAR_LAYERS = {
  "prototype_extractor.out": "extractor.attn.out_proj",
  "prototype_extractor.c_fc": "extractor.mlp.c_fc",
  "prototype_extractor.c_proj": "extractor.mlp.c_proj",
  "category_vae.encoder": "vae_encoder.net.0",
  "category_vae.mean": "vae_encoder.mean",
  "category_vae.log_var": "vae_encoder.log_var",
  "category_vae.decoder": "vae_decoder.net.0",
  "category_vae.output": "vae_decoder.net.2",
}
_LAYER_NORMS = {
  "prototype_extractor.ln_1": "extractor.ln_1",
  "prototype_extractor.ln_2": "extractor.ln_2",
}
_STACKED = ("query", "key", "value")


def to_authors_names(trainable: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Trainable parameters in the authors' names, shapes and memory order.

  What may be absent, the encoder and deep prompts, stays absent.
  """
  tree = {
    name: np.asarray(array)
    for name, array in flax.traverse_util.flatten_dict(
      trainable, sep="."
    ).items()
  }
  context = tree["prompt_learner.context"]
  queries = tree["prototype_extractor.queries"]
  stacked = [f"prototype_extractor.{name}" for name in _STACKED]
  tensors = {
    "ctx_pos": context[None, :1],
    "ctx_neg": context[None, 1:],
    "t_n": queries[0],
    "t_a": queries[1],
    "extractor.attn.in_proj_weight": np.concatenate(
      [tree[f"{name}.kernel"].T for name in stacked]
    ),
    "extractor.attn.in_proj_bias": np.concatenate(
      [tree[f"{name}.bias"] for name in stacked]
    ),
  }
  for ours, theirs in _LINEAR_LAYERS.items():
    if f"{ours}.kernel" in tree:
      tensors[f"{theirs}.weight"] = tree[f"{ours}.kernel"].T
      tensors[f"{theirs}.bias"] = tree[f"{ours}.bias"]
  for ours, theirs in _LAYER_NORMS.items():
    tensors[f"{theirs}.weight"] = tree[f"{ours}.scale"]
    tensors[f"{theirs}.bias"] = tree[f"{ours}.bias"]
  for index, prompts in enumerate(tree.get("prompt_learner.deep_prompts", ())):
    tensors[f"{_DEEP_PROMPTS}{index}"] = prompts
  return tensors


def from_authors_names(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """The inverse of `to_authors_names`.

  Raises:
    KeyError: a tensor is missing, other than the encoder's.
  """
  tree = {
    "prompt_learner.context": np.concatenate(
      [tensors["ctx_pos"][0], tensors["ctx_neg"][0]]
    ),
    "prototype_extractor.queries": np.stack([tensors["t_n"], tensors["t_a"]]),
  }
  weights = np.split(tensors["extractor.attn.in_proj_weight"], 3)
  biases = np.split(tensors["extractor.attn.in_proj_bias"], 3)
  for name, weight, bias in zip(_STACKED, weights, biases, strict=True):
    tree[f"prototype_extractor.{name}.kernel"] = weight.T
    tree[f"prototype_extractor.{name}.bias"] = bias
  for ours, theirs in _LINEAR_LAYERS.items():
    if f"{theirs}.weight" in tensors:
      tree[f"{ours}.kernel"] = tensors[f"{theirs}.weight"].T
      tree[f"{ours}.bias"] = tensors[f"{theirs}.bias"]
  for ours, theirs in _LAYER_NORMS.items():
    tree[f"{ours}.scale"] = tensors[f"{theirs}.weight"]
    tree[f"{ours}.bias"] = tensors[f"{theirs}.bias"]
  depth = sum(name.startswith(_DEEP_PROMPTS) for name in tensors)
  if depth:
    tree["prompt_learner.deep_prompts"] = np.stack(
      [tensors[f"{_DEEP_PROMPTS}{index}"] for index in range(depth)]
    )
  return flax.traverse_util.unflatten_dict(tree, sep=".")


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
  path: str | os.PathLike, template: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
  """Trained prompts and where they are from, in words.

  Args:
    path: a work directory, whose newest checkpoint is read, or a file.
    template: the trainable tree that a model needs; arrays or their shapes.

  Returns:
    The trainable parameters, float32. A file may lack the VAE's encoder: then
    they do too.

  Raises:
    InputError: there is no checkpoint, it is damaged or of another model, or
      not all of its numbers are finite; names every missing, unexpected and
      misshapen tensor of a file at once.
  """
  if is_file(path):
    params, source = _read_file(path, template), str(path)
  else:
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


def _read_file(path, template):
  file = read_tensor_file(path)
  tensors = file.tensors
  is_authors = file.format != "safetensors"
  if is_authors:
    tensors = _strip_root(tensors, path)
  wanted = flax.traverse_util.flatten_dict(template, sep=".")
  if not any(name.startswith(("vae_encoder.", *_ENCODER)) for name in tensors):
    wanted = {
      name: leaf
      for name, leaf in wanted.items()
      if not name.startswith(_ENCODER)
    }
  shapes = {name: leaf.shape for name, leaf in wanted.items()}
  if is_authors:
    _require_conditional_words(template, path)
    zeros = {name: np.zeros(shape) for name, shape in shapes.items()}
    zeros = flax.traverse_util.unflatten_dict(zeros, sep=".")
    shapes = {
      name: array.shape for name, array in to_authors_names(zeros).items()
    }
  check_tensors(
    tensors, shapes, f"{path} does not hold the prompts of this config's model"
  )
  if is_authors:
    tensors = from_authors_names(tensors)
    tensors = flax.traverse_util.flatten_dict(tensors, sep=".")
  params = {name: np.asarray(tensors[name], np.float32) for name in wanted}
  params = flax.traverse_util.unflatten_dict(params, sep=".")
  if file.content_sha256 not in ("", hash_prompts(params)):
    raise InputError(
      f"{path} is damaged: its tensors are not those that were written. Export"
      " them again, or take a copy."
    )
  return params


def _require_conditional_words(tree, path):
  absent = [
    words for part, words in _CONDITIONAL_WORDS.items() if part not in tree
  ]
  if absent:
    raise InputError(
      f"{path}: the authors' format has no prompts without"
      f" {' and '.join(absent)} words; .safetensors has"
    )


def _strip_root(tensors, path):
  """The authors' prompt parameters, without what nothing reads."""
  prefix = f"{_ROOT}."
  if not any(name.startswith(prefix) for name in tensors):
    raise InputError(
      f"{path} holds no trained prompts: a checkpoint of the authors' code is a"
      f" dictionary with the one key {_ROOT!r}. It has"
      f" {', '.join(sorted(tensors)[:3]) or 'no tensors'}."
    )
  stripped = {name.removeprefix(prefix): tensors[name] for name in tensors}
  return {
    name: array
    for name, array in stripped.items()
    if not name.startswith(_UNUSED)
  }


def hash_prompts(trainable: Mapping[str, Any]) -> str:
  """SHA-256 of the parameters' names and values, in hexadecimal."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(trainable):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.asarray(jax.device_get(leaf)).tobytes())
  return digest.hexdigest()


def write_prompts(
  path: str | os.PathLike, trainable: Mapping[str, Any], record: Record
) -> None:
  """Writes trained prompts, float32, and the record of their run.

  The same input gives the same bytes.

  Args:
    path: ends in .safetensors, for this project's names, or in .pth, for the
      authors' format.
    trainable: the parameters.
    record: of the run that trained them.

  Raises:
    InputError: another ending, the file cannot be written, or the authors'
      format has no such prompts.
  """
  path = to_path(path)
  if path.suffix == ".pth":
    _require_conditional_words(trainable, path)
    torch_files.write_tensors(
      path, to_authors_names(trainable), _ROOT, record.to_json()
    )
  elif path.suffix == ".safetensors":
    flat = flax.traverse_util.flatten_dict(trainable, sep=".")
    digest = hash_prompts(trainable)
    content = safetensors.numpy.save(
      {name: np.asarray(array, order="C") for name, array in flat.items()},
      # One entry: of several the order is random, and so the file's bytes.
      metadata={"record": tensor_files.add_hash(record.to_json(), digest)},
    )
    write_file(path, content)
  else:
    raise InputError(
      f"{path} must end in .safetensors or .pth, which choose the format"
    )
