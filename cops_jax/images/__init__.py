"""Image files: read, brought to size, drawn on; anomaly maps as files."""

from cops_jax.images.decoding import AnyImage, UprightImage, read

__all__ = ["AnyImage", "UprightImage", "read"]
