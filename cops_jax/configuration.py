"""Kept for code written for earlier versions; nothing here imports it."""

from cops_jax.inputs.configured import load_examples
from cops_jax.weights.model import build_model
from cops_jax.weights.model import clip_of as load_clip

__all__ = ["build_model", "load_clip", "load_examples"]
