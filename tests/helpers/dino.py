"""Folders of tiny DINO models in the format of the Hugging Face hub."""

import json
import pathlib

import numpy as np
from safetensors.numpy import save_file

from helpers import golden


def write_golden(kind: str, folder: pathlib.Path) -> pathlib.Path:
  """Writes the stored tower of a kind, "dinov2" or "dinov3", to a folder."""
  stored = golden.load("uniadet")
  sizes = json.loads(str(stored["config"]))[kind]
  values = {name: sizes[name] for name in sizes.keys() - {"image", "features"}}
  if kind == "dinov2":
    values |= {"model_type": "dinov2_with_registers", "layer_norm_eps": 1e-6}
    values |= {"hidden_act": "gelu", "use_swiglu_ffn": False}
  else:
    values |= {"model_type": "dinov3_vit", "layer_norm_eps": 1e-5}
    values |= {"rope_theta": 100.0, "key_bias": False}
  tensors = {
    name.removeprefix(f"{kind}."): array.astype(np.float32)
    for name, array in stored.items()
    if name.startswith(f"{kind}.")
  }
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(values))
  save_file(tensors, folder / "model.safetensors")
  return folder
