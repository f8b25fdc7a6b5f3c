"""CLIP weights and trained prompts, in and out."""

from cops_jax.weights.clip import (
  DEMO_CLIP,
  DEMO_FOLDER,
  PretrainedCLIP,
  PromptTokens,
  clip_of,
  load_clip,
  save_clip,
)
from cops_jax.weights.clip_names import clip_param_shapes
from cops_jax.weights.model import (
  build_model,
  load_trainable,
  place_clip,
  settle_dtype,
  trainable_shapes,
)

__all__ = [
  "DEMO_CLIP",
  "DEMO_FOLDER",
  "PretrainedCLIP",
  "PromptTokens",
  "build_model",
  "clip_of",
  "clip_param_shapes",
  "load_clip",
  "load_trainable",
  "place_clip",
  "save_clip",
  "settle_dtype",
  "trainable_shapes",
]
