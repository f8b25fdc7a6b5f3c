"""A plain evaluation step of CoPS, the baseline of the benchmark.

It uses transformers' own layers, computes all 77 tokens of each prompt and all
image tokens in all layers, and filters maps at full size with scipy. Its scores
and maps are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from cops_jax import scoring
from cops_jax.backbones.prompts import join_parts
from cops_jax.backbones.vision import (
  normalize_images,
  resize_position_embedding,
)
from cops_jax.methods.cops import CoPS
from cops_jax.scoring import (
  normalize,
  prototype_distances,
  smooth_patches,
  text_logits,
)


def make_step(model: CoPS):
  """Returns the plain evaluation step of a model with all kinds of words.

  It is `step(variables, images)` and returns image_score (b,) and anomaly_map
  (b, h, w) on the host.
  """

  @jax.jit
  def on_device(variables, images):
    patch_features, image_features, distances, text_features = model.apply(
      variables,
      normalize_images(
        images, model.backbone.image_mean, model.backbone.image_std
      ),
      method=_features,
    )
    image_logits, patch_logits = text_logits(
      image_features,
      patch_features,
      text_features,
      model.config.model.temperature,
    )
    probability = jax.nn.softmax(patch_logits)[..., scoring.ANOMALY]
    settings = model.config.evaluation
    weight = scoring.distance_weight(distances, settings.alpha)
    size = images.shape[1]
    maps = (_enlarge(probability, size) * _enlarge(weight, size)[:, None]).mean(
      1
    )
    patch_scores = (probability * weight[:, None]).mean(1)
    return maps, scoring.image_scores(image_logits, patch_scores, settings.beta)

  def step(
    variables: Mapping[str, Any], images: np.ndarray
  ) -> dict[str, np.ndarray]:
    maps, scores = jax.device_get(on_device(variables, images))
    sigma = model.config.evaluation.blur_sigma_pixels
    maps = [ndimage.gaussian_filter(anomaly_map, sigma) for anomaly_map in maps]
    return {"image_score": scores, "anomaly_map": np.stack(maps)}

  return step


def _enlarge(values, size):
  """Returns each patch's value as a square of pixels."""
  side = round(values.shape[-1] ** 0.5)
  grid = values.reshape(*values.shape[:-1], side, side)
  return grid.repeat(size // side, axis=-2).repeat(size // side, axis=-1)


def _features(model, images):
  class_token, value_paths = _vision(model, images)
  project = model.backbone.visual_projection
  patches = project(model.backbone.vision_model.post_layernorm(value_paths))
  patches = patches.astype(jnp.float32)
  image_features = project(class_token).astype(jnp.float32)
  patches = smooth_patches(patches, model.config.model.smoothing_window_patches)
  fused = patches.mean(axis=1)
  prototypes = model.prototype_extractor(fused)
  codes = jnp.tile(model.evaluation_codes(), (len(images), 1, 1))
  parts, deep_prompts = model.synthesise_prompts(
    prototypes, model.category_vae.decode(codes)
  )
  texts = _text(model.backbone, join_parts(parts), deep_prompts)
  texts = normalize(normalize(texts.astype(jnp.float32)).mean(axis=2))
  return patches, image_features, prototype_distances(fused, prototypes), texts


def _vision(model, images):
  settings, tower = model.config.model, model.backbone.vision_model
  tokens = tower.embeddings.patch_embedding(images)
  batch, side, _, width = tokens.shape
  first = tower.embeddings.class_embedding.astype(tokens.dtype)
  first = jnp.broadcast_to(first, (batch, 1, width))
  tokens = jnp.concatenate([first, tokens.reshape(batch, -1, width)], axis=1)
  positions = tower.embeddings.position_embedding.embedding
  positions = resize_position_embedding(positions, side).astype(tokens.dtype)
  hidden = value_path = tower.pre_layrnorm(tokens + positions[None])
  layers = tower.encoder.layers.layers
  found = {}
  for number, layer in enumerate(layers, start=1):
    attention = layer.self_attn
    if number > len(layers) - settings.num_value_layers:
      values = attention.v_proj(layer.layer_norm1(hidden))
      heads = values.reshape(batch, -1, attention.num_heads, attention.head_dim)
      logits = jnp.einsum("bqhd,bkhd->bhqk", heads, heads)
      weights = jax.nn.softmax(logits * attention.head_dim**-0.5)
      mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, heads)
      value_path += attention.out_proj(mixed.reshape(values.shape))
    (hidden,) = layer(hidden, attention_mask=None)
    if number <= len(layers) - settings.num_value_layers:
      value_path = hidden
    found[number] = value_path[:, 1:]
  return hidden[:, 0], jnp.stack([found[n] for n in settings.feature_layers], 1)


def _text(backbone, prompts, deep_prompts):
  """Returns the end token's features for prompts padded to 77 tokens."""
  tower = backbone.text_model
  table = tower.embeddings.position_embedding.embedding
  *shape, length, width = prompts.shape
  hidden = prompts.reshape(-1, length, width)
  hidden = jnp.pad(hidden, ((0, 0), (0, len(table) - length), (0, 0)))
  hidden = (hidden + table[None]).astype(backbone.dtype)
  mask = jnp.ones(hidden.shape[:2], jnp.int32)
  for index, layer in enumerate(tower.encoder.layers.layers):
    if 1 <= index <= len(deep_prompts):
      deep = deep_prompts[index - 1].astype(hidden.dtype)
      hidden = hidden.at[:, 1 : 1 + len(deep)].set(deep[None])
    (hidden,) = layer(hidden, attention_mask=mask)
  last = tower.final_layer_norm(hidden[:, length - 1])
  return backbone.text_projection(last).reshape(*shape, -1)
