"""The CLIP of the published recipes, with random weights."""

from __future__ import annotations

import jax
import numpy as np

from cops_jax.clip.transformers_clip import CLIPConfig
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
