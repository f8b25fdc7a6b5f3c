"""Kept for code written for earlier versions: see `cops_jax.config`."""

from cops_jax.config import build_model, load_clip, load_examples

__all__ = ["build_model", "load_clip", "load_examples"]
