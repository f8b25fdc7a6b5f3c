"""Training of prompts: the compiled step and the loop around it."""

from cops_jax.training.loop import train

__all__ = ["train"]
