"""DINOv2 with registers and DINOv3: vision towers trained on images alone.

Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, 2023;
Darcet et al., Vision Transformers Need Registers, 2023; Siméoni et al., DINOv3,
2025. They differ in how patches get their positions. DINOv2 adds position
embeddings before the first layer. DINOv3 rotates queries and keys in every
layer.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cops_jax.backbones.attention import choose_implementation, self_attention
from cops_jax.backbones.vision import Sizes, resize_position_embedding
from cops_jax.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class DINOConfig(Sizes):
  """Architecture of a DINO tower.

  The tokens are a class token, registers and patches. Registers belong to no
  patch and are not returned.

  Attributes:
    layer_norm_eps: epsilon of all layer norms.
    position_grid: side of the position embedding's grid, in patches; 0 without
      a position embedding.
    rope_theta: base of the rotary frequencies; 0 without rotation.
  """

  layer_norm_eps: float
  position_grid: int = 0
  rope_theta: float = 0.0

  def to_json_string(self) -> str:
    """Returns the architecture as JSON."""
    return json.dumps(dataclasses.asdict(self))


def rotary_angles(
  config: DINOConfig, grid_size: int
) -> Float[np.ndarray, "t head_dim"]:
  """Returns the rotary angles of all tokens in radians, float32.

  The patch in row i and column j of a grid of G rows is at y = (2i+1)/G - 1
  and x = (2j+1)/G - 1. With head width d and f_m = theta^(-4m/d) for m < d/4,
  its angles are 2 pi (y f, x f), repeated to fill d channels. The class token
  and the registers, which come first, have angle 0.
  """
  quarter = config.width // config.num_heads // 4
  frequencies = config.rope_theta ** -(np.arange(quarter) / quarter)
  places = (2 * np.arange(grid_size) + 1) / grid_size - 1
  rows, columns = np.meshgrid(places, places, indexing="ij")
  angles = np.stack([rows, columns], axis=-1).reshape(-1, 2, 1) * frequencies
  angles = np.tile(angles.reshape(-1, 2 * quarter), 2) * 2 * math.pi
  unrotated = np.zeros((config.num_other_tokens, angles.shape[-1]))
  return np.concatenate([unrotated, angles]).astype(np.float32)


class _Projections(nn.Module):
  """Parameters of the four projections of `self_attention`."""

  width: int

  @nn.compact
  def __call__(self):
    def init(_):
      return {
        "kernel": jnp.zeros((self.width, self.width)),
        "bias": jnp.zeros(self.width),
      }

    names = ("q_proj", "k_proj", "v_proj", "out_proj")
    return {name: self.param(name, init) for name in names}


class DINO(nn.Module):
  """Frozen DINO tower; see `backbones.vision`.

  Attributes:
    config: architecture of the tower.
    dtype, attention, platform: see `clip.CLIP`.
  """

  config: DINOConfig
  dtype: Any = jnp.float32
  attention: str = "auto"
  platform: str = ""

  # Statistics of ImageNet's images per RGB channel, in [0, 1].
  image_mean = (0.485, 0.456, 0.406)
  image_std = (0.229, 0.224, 0.225)

  @property
  def implementation(self) -> str:
    """Implementation of the tower's attention, never "auto"."""
    return choose_implementation(self.attention, self.dtype, self.platform)

  @property
  def feature_width(self) -> int:
    """Width of class and patch tokens."""
    return self.config.width

  @nn.compact
  def encode_layers(
    self, images: Float[Array, "b h w 3"], feature_layers: Sequence[int]
  ) -> tuple[Float[Array, "b f d"], Float[Array, "b f n d"]]:
    """Returns class and patch tokens after the given layers and the last norm.

    Args:
      images: square, normalised images; the side is a multiple of the patch
        size.
      feature_layers: 1-based numbers of the layers that features come from.
    """
    config, dtype = self.config, self.dtype
    size = (config.patch_size,) * 2
    patches = nn.Conv(
      config.width, size, size, "VALID", dtype=dtype, name="patch_embedding"
    )(images.astype(dtype))
    batch, grid_size, _, width = patches.shape
    tokens = self._add_other_tokens(patches.reshape(batch, -1, width))
    rotation = None
    if config.rope_theta:
      angles = rotary_angles(config, grid_size)
      rotation = np.cos(angles), np.sin(angles)
    features = []
    for number in range(1, max(feature_layers) + 1):
      tokens = _Layer(
        config, dtype, self.implementation, name=f"layers_{number - 1}"
      )(tokens, rotation)
      features.append(tokens)
    norm = _layer_norm(self, "norm")
    found = jnp.stack(
      [norm(features[number - 1]) for number in feature_layers], axis=1
    )
    return found[:, :, 0], found[:, :, config.num_other_tokens :]

  def _add_other_tokens(self, tokens):
    """Adds the class token, the registers and, for DINOv2, positions."""
    config, (batch, _, width) = self.config, tokens.shape
    zeros = nn.initializers.zeros
    first = self.param("class_token", zeros, (1, 1, width))
    shape = (1, config.num_other_tokens - 1, width)
    registers = self.param("registers", zeros, shape)

    def spread(rows):
      shape = (batch, *rows.shape[1:])
      return jnp.broadcast_to(rows.astype(self.dtype), shape)

    tokens = jnp.concatenate([spread(first), tokens], axis=1)
    if config.position_grid:
      shape = (1, 1 + config.position_grid**2, width)
      positions = resize_position_embedding(
        self.param("position_embedding", zeros, shape)[0],
        math.isqrt(tokens.shape[1]),
        method="cubic",
        antialias=True,
      )
      tokens += spread(positions[None])
    return jnp.concatenate(
      [tokens[:, :1], spread(registers), tokens[:, 1:]], axis=1
    )


class _Layer(nn.Module):
  """Pre-norm transformer layer with layer scale."""

  config: DINOConfig
  dtype: Any
  implementation: str

  @nn.compact
  def __call__(self, tokens, rotation):
    config, width = self.config, self.config.width
    attended, _ = self_attention(
      _layer_norm(self, "norm1")(tokens),
      _Projections(width, name="attention")(),
      num_heads=config.num_heads,
      num_queries=tokens.shape[1],
      has_value_path=False,
      implementation=self.implementation,
      rotation=rotation,
    )
    tokens += self._scale("scale1") * attended
    hidden = _layer_norm(self, "norm2")(tokens)
    hidden = nn.Dense(config.mlp_width, dtype=self.dtype, name="fc1")(hidden)
    hidden = jax.nn.gelu(hidden, approximate=False)
    hidden = nn.Dense(width, dtype=self.dtype, name="fc2")(hidden)
    return tokens + self._scale("scale2") * hidden

  def _scale(self, name):
    scale = self.param(name, nn.initializers.ones, (self.config.width,))
    return scale.astype(self.dtype)[None, None]


def _layer_norm(module, name):
  return nn.LayerNorm(
    module.config.layer_norm_eps, dtype=module.dtype, name=name
  )
