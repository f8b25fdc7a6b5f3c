"""transformers' torch CLIP with the same two paths, if torch is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.timing import Row, measure, row
from cops_jax.clip.features import encode_batch, join_params
from cops_jax.clip.towers import normalize_images, resize_position_embedding
from cops_jax.methods.cops import CoPS
from cops_jax.weights.clip import PretrainedCLIP
from cops_jax.weights.clip_names import params_to_torch_names


def rows(
  config: Any,
  model: CoPS,
  clip: PretrainedCLIP,
  clip_params: Any,
  images: np.ndarray,
  repeats: int,
) -> Iterator[Row]:
  """Both vision towers on the same images, on the same device."""
  if importlib.util.find_spec("torch") is None:
    yield Row("torch", note="is not installed")
    return
  import torch

  on_gpu = jax.default_backend() == "gpu"
  if on_gpu and not torch.cuda.is_available():
    yield Row("torch", note="has no CUDA here")
    return
  device = "cuda" if on_gpu else "cpu"
  dtype = torch.float16 if on_gpu else torch.float32
  tower = _load(clip).to(device, dtype).eval()
  pixels = np.array(jax.device_get(normalize_images(images)))
  pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device, dtype)
  embeddings = clip.params["vision_model"]["embeddings"]
  positions = resize_position_embedding(
    embeddings["position_embedding"]["embedding"],
    images.shape[1] // clip.config.vision_config.patch_size,
  )
  positions = torch.from_numpy(np.array(positions)).to(device, dtype)

  def encode():
    with torch.inference_mode():
      result = _encode(tower, pixels, positions, model)
      if on_gpu:
        torch.cuda.synchronize()
    return result

  if on_gpu:
    encode = torch.compile(encode)
  ours = jax.jit(
    lambda params: encode_batch(
      model, join_params({}, params), {"image": images}
    )
  )
  want = ours(clip_params)[1][:, -1]
  found = encode().float().cpu().numpy()
  error = np.abs(found - want).max() / np.abs(want).max()
  our_seconds = measure(lambda: ours(clip_params), repeats)
  seconds = measure(encode, repeats)
  yield row("vision tower, ours", our_seconds)
  yield row(
    f"vision tower, torch {torch.__version__}, {dtype}".replace("torch.f", "f"),
    seconds,
    f"ours takes {np.median(our_seconds) / np.median(seconds):.2f} of it;"
    f" largest difference {error:.1e}",
  )


def _load(clip):
  import torch
  from transformers import CLIPModel

  tower = CLIPModel(clip.config)
  state = {
    name: torch.from_numpy(np.array(array))
    for name, array in params_to_torch_names(clip.params).items()
  }
  tower.load_state_dict(state, strict=False)  # It has position ids, too.
  return tower


def _encode(tower, pixels, positions, model):
  """The last feature layer's projected patches, (b, n, d)."""
  import torch
  from torch.nn import functional

  settings = model.config.model
  vision = tower.vision_model
  hidden = vision.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
  first = vision.embeddings.class_embedding.expand(len(hidden), 1, -1)
  hidden = torch.cat([first, hidden], dim=1) + positions
  hidden = value_path = vision.pre_layrnorm(hidden)
  layers = vision.encoder.layers
  for number, layer in enumerate(layers, start=1):
    attention = layer.self_attn
    normed = layer.layer_norm1(hidden)
    query, key, value = (
      linear(normed).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
      for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
    )

    def attend(query, key, value, out=attention.out_proj):
      mixed = functional.scaled_dot_product_attention(query, key, value)
      return out(mixed.transpose(1, 2).flatten(2))

    if number > len(layers) - settings.num_value_layers:
      value_path = value_path + attend(value, value, value)
    hidden = hidden + attend(query, key, value)
    hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
    if number <= len(layers) - settings.num_value_layers:
      value_path = hidden
    if number == settings.feature_layers[-1]:
      found = value_path[:, 1:]
  return tower.visual_projection(vision.post_layernorm(found))
