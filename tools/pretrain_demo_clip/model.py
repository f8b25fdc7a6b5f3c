"""Sizes and initial parameters of the toy CLIP."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from cops_jax.backbones.transformers_clip import CLIPConfig
from cops_jax.typing import Array, Float
from cops_jax.weights.clip_names import clip_param_shapes
from cops_jax.weights.places import torch_place

IMAGE_SIZE, PATCH_SIZE = 112, 8  # Sides in pixels.
NUM_LAYERS, NUM_VALUE_LAYERS = 5, 3
TEMPERATURE = 0.07  # The same as in CoPS.


def clip_config(vocab_size: int) -> CLIPConfig:
  """Returns the config for a tokenizer whose last two tokens delimit a text."""
  return CLIPConfig(
    text_config=dict(
      vocab_size=vocab_size,
      hidden_size=128,
      intermediate_size=512,
      num_hidden_layers=4,
      num_attention_heads=4,
      max_position_embeddings=77,
      bos_token_id=vocab_size - 2,
      eos_token_id=vocab_size - 1,
      pad_token_id=vocab_size - 1,
    ),
    vision_config=dict(
      hidden_size=192,
      intermediate_size=768,
      num_hidden_layers=NUM_LAYERS,
      num_attention_heads=3,
      image_size=IMAGE_SIZE,
      patch_size=PATCH_SIZE,
    ),
    projection_dim=128,
    torch_dtype="float16",
  )


def initial_params(
  config: CLIPConfig, rng: np.random.Generator
) -> dict[str, Any]:
  """Returns initial parameters.

  transformers' initial values suit larger models. Here kernels have a scale of
  1/sqrt(fan-in), and vision attention starts by comparing: every head subtracts
  from a token the mean of similar and nearby tokens. For this, query and key
  are equal, output is minus the inverse of value, and positions are sines
  (after Trockman and Kolter 2023). The model then learns several times faster.
  """
  shapes = flax.traverse_util.flatten_dict(clip_param_shapes(config))
  params = {}
  for path, leaf in shapes.items():
    if path[-1] == "kernel":
      fan_in = np.prod(leaf.shape[:-1])
      scale = fan_in**-0.5
      if path[-2] in ("out_proj", "fc2"):
        scale /= (2 * NUM_LAYERS) ** 0.5
    elif path[-1] in ("embedding", "class_embedding"):
      scale = 0.3 if path[-2] == "token_embedding" else 0.1
    else:
      constant = {"scale": 1.0, "logit_scale": np.log(1 / TEMPERATURE)}
      params[path] = jnp.full(leaf.shape, constant.get(path[-1], 0.0))
      continue
    params[path] = jnp.asarray(rng.normal(0, scale, leaf.shape), jnp.float32)

  def orthogonal(scale):
    rotation = np.linalg.qr(rng.normal(size=(width, width)))[0]
    return scale * rotation

  def set_noisy(path, kernel):
    noise = 0.02 * rng.normal(size=kernel.shape)
    params[path] = jnp.asarray(kernel + noise, jnp.float32)

  width = config.vision_config.hidden_size
  for layer in range(NUM_LAYERS):
    attention = ("vision_model", "encoder", "layers", str(layer), "self_attn")
    query, value = orthogonal(1.0), orthogonal(0.7)
    set_noisy((*attention, "q_proj", "kernel"), query)
    set_noisy((*attention, "k_proj", "kernel"), query)
    set_noisy((*attention, "v_proj", "kernel"), value)
    set_noisy((*attention, "out_proj", "kernel"), -0.5 / 0.7 * value.T)
  embeddings = ("vision_model", "embeddings", "position_embedding", "embedding")
  params[embeddings] = sine_positions(IMAGE_SIZE // PATCH_SIZE, width)
  return flax.traverse_util.unflatten_dict(params)


def sine_positions(side: int, width: int) -> Float[Array, "n1 c"]:
  """Returns position embeddings: sines and cosines of row and column.

  The first row, for the class token, is zero. The grid has `side**2` patches.
  """
  frequencies = 2 * 10 ** (-1.5 * np.arange(width // 4) / (width // 4))
  angles = np.arange(side)[:, None] * frequencies
  axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
  rows, columns = np.repeat(axis, side, axis=0), np.tile(axis, (side, 1))
  patches = 0.5 * np.concatenate([rows, columns], axis=1)
  return jnp.asarray(
    np.concatenate([np.zeros((1, width)), patches]), jnp.float32
  )


def initial_heads(
  config: CLIPConfig, rng: np.random.Generator
) -> dict[str, Array]:
  """Returns linear heads on the last layer's tokens.

  They are `defective`, (c,), with `bias`, (), and `repair`, (c, pixels), which
  has a column for each colour of each pixel in a patch.
  """
  width = config.vision_config.hidden_size
  return {
    "defective": jnp.asarray(rng.normal(0, 0.05, width), jnp.float32),
    "bias": jnp.zeros(()),
    "repair": jnp.asarray(
      rng.normal(0, 0.01, (width, 3 * PATCH_SIZE**2)), jnp.float32
    ),
  }


def to_torch_names(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns CLIP's parameters with transformers' torch names and axis order."""
  tensors = {}
  for name, array in flax.traverse_util.flatten_dict(params, sep=".").items():
    place = torch_place(name, np.ndim(array))
    tensors[place.name] = np.transpose(array, np.argsort(place.axes))
  return tensors


def save_clip(
  folder: pathlib.Path, config: CLIPConfig, params: Mapping[str, Any]
) -> None:
  """Writes config.json and model.safetensors (float16) as transformers does."""
  config.save_pretrained(folder)
  tensors = {
    name: np.asarray(array, np.float16, order="C")
    for name, array in to_torch_names(params).items()
  }
  save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
