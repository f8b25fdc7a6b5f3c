"""Frozen CLIP, with a value path for images and embedded prompts for texts.

`CLIP` adds methods to transformers' Flax module. It therefore loads the
parameters of a stock `FlaxCLIPModel` unchanged, and its `__call__` is plain
CLIP. Nothing in this module is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cops_jax.backbones.attention import choose_implementation, self_attention
from cops_jax.backbones.prompts import join_parts
from cops_jax.backbones.transformers_clip import FlaxCLIPModule
from cops_jax.backbones.vision import resize_position_embedding
from cops_jax.typing import Array, Float, Integer


class CLIP(FlaxCLIPModule):
  """transformers' Flax CLIP with a dual-path vision and a prompted text tower.

  Attributes:
    config: a transformers `CLIPConfig`.
    dtype: type of the computation; parameters keep their own type.
    attention: implementation of the vision tower's attention, or "auto"; see
      `attention.self_attention`.
    platform: platform of the programs; see `attention.choose_implementation`.
    has_projection: if True, `encode_layers` projects tokens to the joint width.
  """

  dtype: Any = jnp.float32
  attention: str = "auto"
  platform: str = ""
  has_projection: bool = True

  # Statistics of CLIP's training images per RGB channel, in [0, 1].
  image_mean = (0.48145466, 0.4578275, 0.40821073)
  image_std = (0.26862954, 0.26130258, 0.27577711)

  @property
  def implementation(self) -> str:
    """Implementation of the vision tower's attention, never "auto"."""
    return choose_implementation(self.attention, self.dtype, self.platform)

  @property
  def feature_width(self) -> int:
    """Width of the features: the joint width if they are projected."""
    if self.has_projection:
      return self.config.projection_dim
    return self.config.vision_config.hidden_size

  def encode_layers(
    self, images: Float[Array, "b h w 3"], feature_layers: Sequence[int]
  ) -> tuple[Float[Array, "b f d"], Float[Array, "b f n d"]]:
    """Returns plain CLIP's class and patch tokens after the given layers.

    The post-layernorm and, with `has_projection`, the projection are applied.
    The tokens are not L2-normalised. For the arguments, see `vision_streams`.
    """
    _, tokens = self.vision_streams(
      images, feature_layers=feature_layers, num_value_layers=0
    )
    tokens = self.vision_model.post_layernorm(tokens)
    if self.has_projection:
      tokens = self.visual_projection(tokens)
    return tokens[:, :, 0], tokens[:, :, 1:]

  def vision_streams(
    self,
    images: Float[Array, "b h w 3"],
    *,
    feature_layers: Sequence[int],
    num_value_layers: int,
  ) -> tuple[Float[Array, "b c"], Float[Array, "b f n1 c"]]:
    """Runs CLIP's own stream and the value path through the vision tower.

    In the last `num_value_layers` layers a second stream, the value path, runs
    alongside CLIP's own. It starts as a copy of CLIP's stream. Each layer adds
    value-value attention `out_proj(softmax(v v^T / sqrt(head_dim)) v)` to it,
    and no MLP (CoPS section 3.1, after CLIP Surgery and AnomalyCLIP).

    Args:
      images: square images, normalised with CLIP's mean and standard deviation;
        the side is a multiple of the patch size.
      feature_layers: 1-based numbers of the layers that features come from.
      num_value_layers: number of layers, from the last, with the value path.

    Returns:
      The class token of CLIP's own stream after the last layer, and all tokens
      of the value path after each feature layer, class token first. In layers
      without a value path, CLIP's own stream takes its place.
    """
    tower = self.vision_model
    tokens = tower.embeddings.patch_embedding(images)
    batch, grid_size, _, width = tokens.shape
    class_token = tower.embeddings.class_embedding.astype(tokens.dtype)
    original = jnp.concatenate(
      [
        jnp.broadcast_to(class_token, (batch, 1, width)),
        tokens.reshape(batch, -1, width),
      ],
      axis=1,
    )
    positions = resize_position_embedding(
      tower.embeddings.position_embedding.embedding, grid_size
    )
    original = tower.pre_layrnorm(
      original + positions.astype(tokens.dtype)[None]
    )

    layers = tower.encoder.layers.layers
    first_value_layer = len(layers) - num_value_layers + 1
    value_path = original
    features = {}
    for number, layer in enumerate(layers, start=1):
      attention = layer.self_attn
      hidden = layer.layer_norm1(original)
      if number == len(layers) and (
        number >= first_value_layer or number not in feature_layers
      ):
        # After the last layer, only the class token of this stream is read.
        original = original[:, :1]
      own, value = self_attention(
        hidden,
        attention.variables["params"],
        num_heads=attention.num_heads,
        num_queries=original.shape[1],
        has_value_path=first_value_layer <= number <= max(feature_layers),
        implementation=self.implementation,
      )
      if value is not None:
        value_path += value
      original += own
      original += layer.mlp(layer.layer_norm2(original))
      if number < first_value_layer:
        value_path = original
      if number in feature_layers:
        features[number] = value_path
    return original[:, 0], jnp.stack(
      [features[number] for number in feature_layers], axis=1
    )

  def encode_images(
    self,
    images: Float[Array, "b h w 3"],
    *,
    feature_layers: Sequence[int],
    num_value_layers: int,
  ) -> tuple[Float[Array, "b d"], Float[Array, "b f n d"]]:
    """Returns plain CLIP's image features and the value path's patch features.

    An image feature is the projected class token without the post-layernorm, as
    in the authors' code. The patch features of each feature layer are the
    projected patches in row-major order, not smoothed. Neither is
    L2-normalised. For the arguments, see `vision_streams`.
    """
    class_token, value_paths = self.vision_streams(
      images, feature_layers=feature_layers, num_value_layers=num_value_layers
    )
    patches = self.vision_model.post_layernorm(value_paths[:, :, 1:])
    return (
      self.visual_projection(class_token),
      self.visual_projection(patches),
    )

  def embed_tokens(
    self, token_ids: Integer[Array, "*l"]
  ) -> Float[Array, "*l c"]:
    """Returns embeddings of text tokens, without positions."""
    return self.text_model.embeddings.token_embedding(token_ids)

  def encode_prompts(
    self,
    parts: Sequence[Float[Array, "... _l c"]],
    deep_prompts: Float[Array, "depth t c"],
  ) -> Float[Array, "... d"]:
    """Returns text features of embedded prompts, with deep prompts.

    The tower is causal and only the end token is read, so prompts stop there:
    padding them to CLIP's 77 positions would not change the result. For the
    same reason, tokens that many prompts begin with are computed once.

    Args:
      parts: consecutive parts of the prompts: token embeddings without
        positions, up to the end token. All parts have the axes of the prompts.
        A part has length 1 along an axis if neither it nor an earlier part
        differs along that axis.
      deep_prompts: row i replaces the tokens 1 to t before layer i + 1, counted
        from 0, so never before the first layer. There are fewer rows than
        layers.

    Returns:
      Projected features of the end token, not L2-normalised.
    """
    tower = self.text_model
    ends = np.cumsum([part.shape[-2] for part in parts])
    starts = [0, *ends[:-1]]
    table = tower.embeddings.position_embedding.embedding
    table = table.reshape(*[1] * (parts[0].ndim - 2), *table.shape)
    parts = [
      (part + table[..., start:end, :]).astype(self.dtype)
      for part, start, end in zip(parts, starts, ends, strict=True)
    ]
    layers = tower.encoder.layers.layers
    for index, layer in enumerate(layers):
      if 1 <= index <= len(deep_prompts):
        parts = [
          _replace(part, start, deep_prompts[index - 1])
          for part, start in zip(parts, starts, strict=True)
        ]
      parts = _causal_layer(layer, parts, is_last=index == len(layers) - 1)
    (last,) = parts
    return self.text_projection(tower.final_layer_norm(last[..., 0, :]))

  def encode_texts(
    self, token_ids: Integer[Array, "b l"], ends: Integer[Array, "b"]
  ) -> Float[Array, "b d"]:
    """Returns text features of plain CLIP, not L2-normalised.

    Args:
      token_ids: token ids from the start token on. Attention is causal, so ids
        after the end token do not matter.
      ends: positions of the end tokens.
    """
    tower = self.text_model
    table = tower.embeddings.position_embedding.embedding
    tokens = self.embed_tokens(token_ids) + table[None, : token_ids.shape[1]]
    parts = [tokens.astype(self.dtype)]
    for layer in tower.encoder.layers.layers:
      parts = _causal_layer(layer, parts, is_last=False)
    last = jnp.take_along_axis(parts[0], ends[:, None, None], axis=1)
    return self.text_projection(tower.final_layer_norm(last[:, 0]))


def _causal_layer(layer, parts, is_last):
  """Returns the parts after a layer; after the last, only the end token."""
  attention = layer.self_attn
  normed = [layer.layer_norm1(part) for part in parts]
  keys = [attention.k_proj(part) for part in normed]
  values = [attention.v_proj(part) for part in normed]
  wanted = slice(-1 if is_last else 0, None)
  results = []
  for number in range(len(parts))[wanted]:
    part = parts[number][..., wanted, :]
    part += _attend_causally(
      attention,
      attention.q_proj(normed[number][..., wanted, :]),
      join_parts(keys[: number + 1]),
      join_parts(values[: number + 1]),
    )
    results.append(part + layer.mlp(layer.layer_norm2(part)))
  return results


def _replace(part, start, deep):
  """Replaces those of the prompts' tokens 1, 2, ... that the part contains."""
  first = max(1 - start, 0)
  end = min(1 + len(deep) - start, part.shape[-2])
  if first >= end:
    return part
  rows = deep[first + start - 1 : end + start - 1]
  # Casting last keeps the gradient's sum over prompts and devices in float32.
  rows = jnp.broadcast_to(rows, (*part.shape[:-2], *rows.shape))
  return jnp.concatenate(
    [part[..., :first, :], rows.astype(part.dtype), part[..., end:, :]], axis=-2
  )


def _attend_causally(attention, query, key, value):
  """Returns causal attention of the last tokens to all tokens."""
  shape = query.shape
  # *b l c -> b l heads head_dim
  query, key, value = (
    array.reshape(-1, array.shape[-2], attention.num_heads, attention.head_dim)
    for array in (query, key, value)
  )
  length, before = query.shape[1], key.shape[1] - query.shape[1]
  mask = np.tri(length, before + length, before, dtype=bool)
  mixed = jax.nn.dot_product_attention(
    query, key, value, mask=mask.reshape(1, 1, *mask.shape)
  )
  return attention.out_proj(mixed.reshape(shape))
