"""Training: the compiled step and the loop."""

from cops_jax.training.loop import train

__all__ = ["train"]
