"""The CLIP of the published recipes, with random weights; and its FLOPs."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from transformers import CLIPConfig

from cops_jax.weights.clip import OPENAI_TOKENS, PretrainedCLIP
from cops_jax.weights.clip_names import clip_param_shapes


def clip_config() -> CLIPConfig:
  """OpenAI's ViT-L/14@336."""
  return CLIPConfig(
    text_config=dict(
      hidden_size=768,
      intermediate_size=3072,
      num_hidden_layers=12,
      num_attention_heads=12,
    ),
    vision_config=dict(
      hidden_size=1024,
      intermediate_size=4096,
      num_hidden_layers=24,
      num_attention_heads=16,
      image_size=336,
      patch_size=14,
    ),
    projection_dim=768,
  )


def random_clip(config: CLIPConfig | None = None) -> PretrainedCLIP:
  """A CLIP, by default `clip_config`, but for the values of its weights."""
  config = config or clip_config()
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: 0.02 * rng.standard_normal(leaf.shape, np.float32),
    clip_param_shapes(config),
  )
  return PretrainedCLIP(config, params, OPENAI_TOKENS, "random")


def needed_flops(config: Any, clip: CLIPConfig) -> float:
  """Of an image's evaluation: the matrix products that cannot be left out.

  A product of (n, k) and (k, m) counts 2 n k m. Embeddings, norms, softmax and
  the anomaly map are not counted: together less than one percent.

  Args:
    config: a ConfigDict with the fields of `cops_jax.config`.
    clip: sizes.
  """
  model, vision, text = config.model, clip.vision_config, clip.text_config
  num_patches = (model.image_size_pixels // vision.patch_size) ** 2
  tokens, width = num_patches + 1, vision.hidden_size
  mlp = 4 * width * vision.intermediate_size
  attention = 4 * tokens**2 * width
  num_layers = vision.num_hidden_layers
  # All layers but the last: four projections, attention, MLP.
  flops = (num_layers - 1) * (tokens * (8 * width**2 + mlp) + attention)
  # The last: its keys and values, and the rest for the class token.
  flops += 4 * tokens * width**2 + 4 * width**2 + mlp
  # The value path: attention and its output projection.
  num_value = min(
    model.num_value_layers - num_layers + max(model.feature_layers),
    model.num_value_layers,
  )
  flops += max(num_value, 0) * (attention + 2 * tokens * width**2)
  flops += 2 * num_patches * 3 * vision.patch_size**2 * width
  flops += (
    2 * len(model.feature_layers) * num_patches * width * clip.projection_dim
  )
  # Prompts: the context once, the state words for each state, the rest for each
  # state and code. The context does not depend on the image, but is computed
  # for each batch.
  codes = 2 * (config.evaluation.num_samples if model.num_category_words else 1)
  suffix = model.num_category_words + 2
  num_tokens = 2 * (1 + model.num_context_words + model.num_state_words)
  num_tokens += codes * suffix
  width = text.hidden_size
  per_token = 8 * width**2 + 4 * width * text.intermediate_size
  flops += text.num_hidden_layers * num_tokens * per_token
  return float(flops)
