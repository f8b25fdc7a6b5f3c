"""Reads, resizes and draws images; writes anomaly maps to files."""

from cops_jax.images.decoding import AnyImage, UprightImage, read

__all__ = ["AnyImage", "UprightImage", "read"]
