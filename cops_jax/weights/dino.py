"""DINO models from the Hugging Face hub and from folders."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from cops_jax.backbones.dino import DINO, DINOConfig
from cops_jax.errors import InputError
from cops_jax.weights import folders
from cops_jax.weights.places import Place, params_from_tensors, torch_place

_TENSOR_FILES = ("model.safetensors", "pytorch_model.bin")
_UNUSED = "embeddings.mask_token"  # Used only in the training of DINO.

# Names in config.json by field of DINOConfig, and required values in it.
_SIZES = {
  "patch_size": "patch_size",
  "num_layers": "num_hidden_layers",
  "num_heads": "num_attention_heads",
  "width": "hidden_size",
  "num_other_tokens": "num_register_tokens",
}
_REQUIRED = {
  "hidden_act": "gelu",
  "num_channels": 3,
  "use_swiglu_ffn": False,
  "use_gated_mlp": False,
  "qkv_bias": True,
  "query_bias": True,
  "key_bias": False,
  "value_bias": True,
  "proj_bias": True,
  "mlp_bias": True,
}
# Replacements from this project's names to those of each kind.
_NAMES = {
  "dinov2": (
    (r"^layers_", "encoder.layer."),
    (r"attention\.q_proj", "attention.attention.query"),
    (r"attention\.k_proj", "attention.attention.key"),
    (r"attention\.v_proj", "attention.attention.value"),
    (r"attention\.out_proj", "attention.output.dense"),
    (r"\.fc", ".mlp.fc"),
    (r"^norm", "layernorm"),
    (r"^patch_embedding", "embeddings.patch_embeddings.projection"),
  ),
  "dinov3": (
    (r"^layers_", "layer."),
    (r"attention\.out_proj", "attention.o_proj"),
    (r"\.fc1", ".mlp.up_proj"),
    (r"\.fc2", ".mlp.down_proj"),
    (r"^patch_embedding", "embeddings.patch_embeddings"),
  ),
}
_BOTH = (
  (r"^class_token", "embeddings.cls_token"),
  (r"^registers", "embeddings.register_tokens"),
  (r"^position_embedding", "embeddings.position_embeddings"),
  (r"\.scale(\d)$", r".layer_scale\1.lambda1"),
)


@dataclasses.dataclass(frozen=True)
class PretrainedDINO:
  """A DINO model that was read from files.

  Attributes:
    config: architecture of the model.
    params: parameter tree of `DINO`, float32, on the host.
    sha256: SHA-256 of the file with the weights, in hexadecimal.
  """

  config: DINOConfig
  params: Mapping[str, Any]
  sha256: str


def load_dino(
  kind: str, weights: str, revision: str = "", sha256: str = ""
) -> PretrainedDINO:
  """Loads a DINO model from the Hugging Face hub or a folder.

  Args:
    kind: "dinov2" (with registers) or "dinov3".
    weights: name of a model on the hub, which is downloaded once, or a folder
      in the hub's format: config.json and model.safetensors or
      pytorch_model.bin.
    revision: branch, tag or commit on the hub; empty for the newest.
    sha256: expected hash of the file with the weights; empty accepts any.

  Raises:
    InputError: if there is no such model, or a file is missing, damaged or of
      another kind, has another hash, or does not fit its config.json.
  """
  folder = folders.find(weights, revision, (), _TENSOR_FILES)
  if not folder.is_dir():
    raise InputError(
      f"{folder} is a file, but config.backbone.kind is {kind!r}: name the"
      " folder with its config.json"
    )
  config = _make_config(kind, folders.read_config(folder, kind), folder)
  file = folders.read_tensors(
    folder, kind, _TENSOR_FILES, config.num_layers, sha256
  )
  shapes = dino_param_shapes(config)
  tensors = {
    name: array for name, array in file.tensors.items() if name != _UNUSED
  }
  zeros = {}
  if kind == "dinov3":  # Its key projections have no bias.
    zeros = {
      f"layer.{layer}.attention.k_proj.bias": np.zeros(config.width, np.float32)
      for layer in range(config.num_layers)
    }
    if surplus := sorted(zeros.keys() & tensors.keys()):
      raise InputError(
        f"{file.path} has the bias {surplus[0]}, but DINOv3's keys have none:"
        " choose other weights"
      )
  params = params_from_tensors(
    {**tensors, **zeros},
    shapes,
    functools.partial(_place, kind),
    f"{file.path} does not contain the model that its config.json describes",
  )
  return PretrainedDINO(config, params, file.sha256)


def dino_param_shapes(config: DINOConfig) -> Mapping[str, Any]:
  """Returns the tree of `DINO(config)` as `jax.ShapeDtypeStruct`s."""
  side = config.patch_size * max(config.position_grid, 1)
  return jax.eval_shape(
    lambda key, images: DINO(config).init(
      key, images, (config.num_layers,), method="encode_layers"
    ),
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, side, side, 3), np.float32),
  )["params"]


def _place(kind: str, name: str, num_axes: int) -> Place:
  place = torch_place(name, num_axes)
  if name.endswith((".scale1", ".scale2")):
    place = place._replace(name=name)
  renamed = place.name
  for ours, theirs in (*_NAMES[kind], *_BOTH):
    renamed = re.sub(ours, theirs, renamed)
  return place._replace(name=renamed)


def _make_config(kind, values, folder):
  """Returns the architecture that config.json describes."""
  path = folder / folders.CONFIG
  for name, wanted in _REQUIRED.items():
    if values.get(name, wanted) != wanted:
      raise InputError(
        f"{path}: {name} is {values[name]!r}, but only {wanted!r} is supported:"
        " choose ViT-S, ViT-B or ViT-L"
      )
  try:
    sizes = {ours: values[theirs] for ours, theirs in _SIZES.items()}
    if kind == "dinov2":
      sizes["mlp_width"] = int(sizes["width"] * values["mlp_ratio"])
      sizes["position_grid"] = values["image_size"] // sizes["patch_size"]
    else:
      sizes["mlp_width"] = values["intermediate_size"]
    wrong = [
      name
      for name, value in sizes.items()
      if type(value) is not int or not 0 < value < 1 << 20
    ]
    if wrong:
      raise ValueError(
        f"{wrong[0]} is {sizes[wrong[0]]!r}, expected a positive whole number"
        " below 2^20"
      )
    if sizes["width"] % (4 * sizes["num_heads"]):
      raise ValueError(
        f"{sizes['num_heads']} heads do not divide {sizes['width']} channels"
      )
    sizes["num_other_tokens"] += 1  # The class token.
    return DINOConfig(
      **sizes,
      layer_norm_eps=float(values["layer_norm_eps"]),
      rope_theta=float(values["rope_theta"]) if kind == "dinov3" else 0.0,
    )
  except (LookupError, TypeError, ValueError) as error:
    reason = f"{type(error).__name__}: {error}"
    raise InputError(f"{path} does not describe a DINO ({reason})") from error
