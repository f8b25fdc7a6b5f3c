"""CLIP weights in Hugging Face's folder format, in and out."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from transformers import CLIPConfig, CLIPTokenizerFast

from cops_jax.errors import InputError
from cops_jax.models.clip import CLIP

DEMO_CLIP = "demo"
DEMO_FOLDER = pathlib.Path(__file__).parent / "assets" / "demo_clip"

# By preference.
_TENSOR_FILES = ("model.safetensors", "pytorch_model.bin")

# Buffers that old files carry; transformers ignores them too.
_IGNORED_SUFFIX = ".position_ids"


@dataclasses.dataclass(frozen=True)
class PromptTokens:
  """Token ids around the learned words of a prompt, in CLIP's vocabulary."""

  start: int
  object: int  # The word "object".
  period: int
  end: int


@dataclasses.dataclass(frozen=True)
class PretrainedCLIP:
  """A CLIP model as read from disk.

  Attributes:
    config: sizes of both towers.
    params: the parameter tree of `CLIP`, float32, on the host.
    tokens: ids for prompt assembly.
  """

  config: CLIPConfig
  params: Mapping[str, Any]
  tokens: PromptTokens


def clip_param_shapes(config: CLIPConfig) -> Mapping[str, Any]:
  """The parameter tree of `CLIP(config)` as `jax.ShapeDtypeStruct`s."""
  side = config.vision_config.image_size
  tokens = jnp.zeros((1, 1), jnp.int32)
  return jax.eval_shape(
    CLIP(config).init,
    jax.random.key(0),
    tokens,
    jnp.zeros((1, side, side, 3)),
    tokens,
    tokens,
  )["params"]


def _to_torch(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
  """One flax parameter in torch's name and memory order."""
  stem, _, leaf = name.rpartition(".")
  if leaf == "kernel":
    # Dense: in out -> out in. Convolution: h w in out -> out in h w.
    axes = (1, 0) if array.ndim == 2 else (3, 2, 0, 1)
    return f"{stem}.weight", np.transpose(array, axes)
  if leaf in ("scale", "embedding"):
    return f"{stem}.weight", array
  return name, array


def _from_torch(name: str, array: np.ndarray) -> np.ndarray:
  """The inverse of `_to_torch` on the array; `name` is flax's."""
  if name.endswith(".kernel"):
    return np.transpose(array, (1, 0) if array.ndim == 2 else (2, 3, 1, 0))
  return array


def params_from_torch_names(
  tensors: Mapping[str, np.ndarray], config: CLIPConfig, source: str
) -> Mapping[str, Any]:
  """Builds CLIP's parameter tree from tensors in Hugging Face's torch names.

  Args:
    tensors: a whole `CLIPModel` state dict.
    config: sizes to check it against.
    source: what to call the tensors in an error.

  Returns:
    The parameters of `CLIP(config)`, float32.

  Raises:
    InputError: naming every missing, unexpected and misshapen tensor at once.
  """
  shapes = flax.traverse_util.flatten_dict(clip_param_shapes(config), sep=".")
  tensors = {
    name: array
    for name, array in tensors.items()
    if not name.endswith(_IGNORED_SUFFIX)
  }
  params, problems = {}, []
  for name, expected in shapes.items():
    torch_name, placeholder = _to_torch(
      name, np.broadcast_to(np.float32(0), expected.shape)
    )
    array = tensors.pop(torch_name, None)
    if array is None:
      problems.append(f"missing: {torch_name}")
    elif array.shape != placeholder.shape:
      problems.append(
        f"shape of {torch_name}: {array.shape}, expected {placeholder.shape}"
      )
    else:
      params[name] = np.asarray(_from_torch(name, array), np.float32)
  problems += [f"unexpected: {name}" for name in sorted(tensors)]
  if problems:
    raise InputError(
      f"{source} does not hold the CLIP model that its config.json describes:"
      + "".join(f"\n  {problem}" for problem in problems)
    )
  return flax.traverse_util.unflatten_dict(params, sep=".")


def params_to_torch_names(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """CLIP's parameter tree in Hugging Face's torch names and memory order."""
  flat = flax.traverse_util.flatten_dict(params, sep=".")
  return dict(
    _to_torch(name, np.asarray(array)) for name, array in flat.items()
  )


def load_clip(name_or_path: str) -> PretrainedCLIP:
  """Loads a CLIP model by Hugging Face name or from a folder in that format.

  Args:
    name_or_path: a folder with config.json, model.safetensors and the tokenizer
      (vocab.json, merges.txt); or "demo" for the toy in this package; or the
      name of a model on the Hugging Face hub, which is downloaded once. Models
      that have only `pytorch_model.bin` need torch installed to be read.

  Raises:
    InputError: a file is missing, damaged or does not fit its config.json.
  """
  if name_or_path == DEMO_CLIP:
    folder = DEMO_FOLDER
  elif pathlib.Path(name_or_path).is_dir():
    folder = pathlib.Path(name_or_path)
  else:
    folder = _download(name_or_path)
  text = _existing(folder / "config.json").read_text(encoding="utf-8")
  try:
    config = CLIPConfig.from_dict(json.loads(text))
  except json.JSONDecodeError as error:
    raise InputError(
      f"{folder / 'config.json'} is not JSON: {error}"
    ) from error
  path, tensors = _read_tensors(folder)
  params = params_from_torch_names(tensors, config, str(path))
  return PretrainedCLIP(config, params, _prompt_tokens(folder))


def _download(name: str) -> pathlib.Path:
  import huggingface_hub

  files = ["config.json", "vocab.json", "merges.txt"]
  try:
    available = huggingface_hub.HfApi().list_repo_files(name)
    tensors = next(file for file in _TENSOR_FILES if file in available)
    folder = huggingface_hub.snapshot_download(
      name, allow_patterns=[*files, tensors]
    )
  except Exception as error:  # The hub's client raises many kinds.
    try:  # Without a network, an earlier download is still in the cache.
      folder = huggingface_hub.snapshot_download(name, local_files_only=True)
    except Exception:
      raise InputError(
        f"CLIP weights {name!r} are neither a folder here nor a model that can"
        f" be downloaded ({type(error).__name__}). Give config.clip.weights a"
        " Hugging Face model folder, or, with network access, a hub name such"
        " as openai/clip-vit-large-patch14-336."
      ) from error
  return pathlib.Path(folder)


def _existing(path: pathlib.Path) -> pathlib.Path:
  if not path.is_file():
    raise InputError(
      f"{path} does not exist; a Hugging Face CLIP folder holds config.json,"
      " model.safetensors, vocab.json and merges.txt"
    )
  return path


def _read_tensors(
  folder: pathlib.Path,
) -> tuple[pathlib.Path, Mapping[str, np.ndarray]]:
  safetensors_file, torch_file = (folder / name for name in _TENSOR_FILES)
  if safetensors_file.is_file() or not torch_file.is_file():
    try:
      return safetensors_file, load_file(_existing(safetensors_file))
    except SafetensorError as error:
      raise InputError(
        f"{safetensors_file} is not a whole safetensors file: {error}"
      ) from error
  try:
    import torch
  except ImportError as error:
    raise InputError(
      f"{torch_file} is in torch's own format: install torch to read it, or"
      " convert it to model.safetensors"
    ) from error
  state = torch.load(torch_file, map_location="cpu", weights_only=True)
  return torch_file, {
    name: tensor.float().numpy() for name, tensor in state.items()
  }


def _prompt_tokens(folder: pathlib.Path) -> PromptTokens:
  tokenizer = CLIPTokenizerFast(
    vocab_file=str(_existing(folder / "vocab.json")),
    merges_file=str(_existing(folder / "merges.txt")),
  )
  ids = tokenizer("object .").input_ids
  if len(ids) != 4:
    raise InputError(
      f"the tokenizer in {folder} must know the word 'object' and the full stop"
      f" as one token each, between a start and an end token; it gives {ids}"
    )
  return PromptTokens(*ids)


def save_clip(
  folder: str | pathlib.Path, config: CLIPConfig, params: Mapping[str, Any]
) -> None:
  """Writes config.json and model.safetensors (float16) as transformers does.

  The folder also needs the tokenizer's files to be loaded again.
  """
  config.save_pretrained(folder)
  tensors = {
    name: np.asarray(array, np.float16, order="C")
    for name, array in params_to_torch_names(params).items()
  }
  save_file(
    tensors,
    pathlib.Path(folder) / "model.safetensors",
    metadata={"format": "pt"},
  )
