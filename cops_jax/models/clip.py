"""CLIP's two towers as CoPS uses them, built on transformers' Flax CLIP.

`CLIP` is transformers' own module with more methods, so the parameters of a
stock `FlaxCLIPModel` drop in unconverted and plain CLIP stays available through
`__call__`. It is frozen: nothing here is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from transformers.models.clip.modeling_flax_clip import FlaxCLIPModule

from cops_jax.typing import Array, Float, Integer

# Of the images CLIP was trained on, per RGB channel, in [0, 1].
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


def normalize_images(
  images: Integer[Array, "b h w 3"],
) -> Float[Array, "b h w 3"]:
  """uint8 images as CLIP expects them."""
  mean, std = (
    jnp.array(values).reshape(1, 1, 1, 3) for values in (IMAGE_MEAN, IMAGE_STD)
  )
  return (images / 255.0 - mean) / std


def resize_position_embedding(
  embedding: Float[Array, "p c"], grid_size: int
) -> Float[Array, "q c"]:
  """Fits CLIP's vision position embedding to another patch grid.

  Args:
    embedding: class token's row, then the rows of CLIP's own square grid.
    grid_size: patches along one side of the wanted grid.

  Returns:
    1 + grid_size**2 rows: the class token's is kept, the patches' are
    interpolated bilinearly with half-pixel centres and no antialiasing.
  """
  class_row, patch_rows = embedding[:1], embedding[1:]
  side = round(patch_rows.shape[0] ** 0.5)
  width = embedding.shape[-1]
  grid = jax.image.resize(
    patch_rows.reshape(side, side, width),
    (grid_size, grid_size, width),
    method="bilinear",
    antialias=False,
  )
  return jnp.concatenate([class_row, grid.reshape(-1, width)])


def _attend(attention, query, key, value, *, is_causal=False):
  """Attention with a CLIP layer's own heads and output projection."""
  # b l c -> b l heads head_dim
  split = attention._split_heads
  mixed = jax.nn.dot_product_attention(
    split(query), split(key), split(value), is_causal=is_causal
  )
  return attention.out_proj(attention._merge_heads(mixed))


class CLIP(FlaxCLIPModule):
  """transformers' Flax CLIP with a dual-path vision and a prompted text tower.

  Attributes:
    config: a transformers `CLIPConfig`.
    dtype: of the computation; parameters keep their own.
  """

  dtype: Any = jnp.float32

  def vision_streams(
    self,
    images: Float[Array, "b h w 3"],
    *,
    feature_layers: Sequence[int],
    num_value_layers: int,
  ) -> tuple[Float[Array, "b n1 c"], Float[Array, "b f n1 c"]]:
    """Runs the vision tower's two streams, the class token first in both.

    The last `num_value_layers` layers carry a second stream besides CLIP's own:
    it starts as a copy of it and adds, in every layer, value-value attention
    `out_proj(softmax(v v^T / sqrt(head_dim)) v)` and no MLP (CoPS section 3.1,
    after CLIP Surgery and AnomalyCLIP).

    Args:
      images: normalised with CLIP's mean and standard deviation; square, the
        side a multiple of the patch size.
      feature_layers: 1-based numbers of the layers to read the value path from.
      num_value_layers: how many of the last layers have the value path.

    Returns:
      CLIP's own stream after the last layer, and the value path (CLIP's own
      stream in the layers without one) after each feature layer.
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
      query, key, value = (
        projection(hidden)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
      )
      if number >= first_value_layer:
        value_path += _attend(attention, value, value, value)
      original += _attend(attention, query, key, value)
      original += layer.mlp(layer.layer_norm2(original))
      if number < first_value_layer:
        value_path = original
      if number in feature_layers:
        features[number] = value_path
    return original, jnp.stack(
      [features[number] for number in feature_layers], axis=1
    )

  def encode_images(
    self,
    images: Float[Array, "b h w 3"],
    *,
    feature_layers: Sequence[int],
    num_value_layers: int,
  ) -> tuple[Float[Array, "b d"], Float[Array, "b f n d"]]:
    """Image features of plain CLIP, patch features of the value path.

    Args: see `vision_streams`.

    Returns:
      The projected class token, as the authors' code reads it: without the
      post-layernorm and not L2-normalised. And the projected patches for each
      feature layer, in row-major order, neither smoothed nor normalised.
    """
    original, value_paths = self.vision_streams(
      images, feature_layers=feature_layers, num_value_layers=num_value_layers
    )
    patches = self.vision_model.post_layernorm(value_paths[:, :, 1:])
    return (
      self.visual_projection(original[:, 0]),
      self.visual_projection(patches),
    )

  def embed_tokens(
    self, token_ids: Integer[Array, "*l"]
  ) -> Float[Array, "*l c"]:
    """Text token embeddings, without positions."""
    return self.text_model.embeddings.token_embedding(token_ids)

  def encode_prompts(
    self,
    embeddings: Float[Array, "b l c"],
    deep_prompts: Float[Array, "depth t c"],
  ) -> Float[Array, "b d"]:
    """Text features of embedded prompts, with learned tokens in deeper layers.

    The tower is causal and only the last token is read, so prompts end at their
    end token: padding to CLIP's 77 positions would not change the result.

    Args:
      embeddings: token embeddings without positions; the last is the end token.
      deep_prompts: row i replaces the tokens 1 to t before layer i + 1 (0-based
        layers, so never before the first); less than the tower's layers.

    Returns:
      Projected features of the last token, not L2-normalised.
    """
    tower = self.text_model
    length = embeddings.shape[1]
    table = tower.embeddings.position_embedding.embedding[:length]
    hidden = (embeddings + table[None]).astype(self.dtype)
    depth, deep_length, width = deep_prompts.shape
    for index, layer in enumerate(tower.encoder.layers.layers):
      if 1 <= index <= depth:
        deep = deep_prompts[index - 1].astype(self.dtype)
        deep = jnp.broadcast_to(deep, (hidden.shape[0], deep_length, width))
        hidden = jnp.concatenate(
          [hidden[:, :1], deep, hidden[:, 1 + deep_length :]], axis=1
        )
      attention = layer.self_attn
      normed = layer.layer_norm1(hidden)
      hidden += _attend(
        attention,
        attention.q_proj(normed),
        attention.k_proj(normed),
        attention.v_proj(normed),
        is_causal=True,
      )
      hidden += layer.mlp(layer.layer_norm2(hidden))
    return self.text_projection(tower.final_layer_norm(hidden[:, -1]))
