"""CLIP weights and trained prompts, in and out."""

from cops_jax.clip_files import (
  DEMO_CLIP,
  DEMO_FOLDER,
  PretrainedCLIP,
  PromptTokens,
  load_clip,
  save_clip,
)
from cops_jax.clip_names import clip_param_shapes

__all__ = [
  "DEMO_CLIP",
  "DEMO_FOLDER",
  "PretrainedCLIP",
  "PromptTokens",
  "clip_param_shapes",
  "load_clip",
  "save_clip",
]
