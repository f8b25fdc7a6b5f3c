"""Kept for data prepared by earlier versions: see `cops_jax.datasets.schema`.

TFDS finds the class by the name in a prepared copy's features.json.
"""

from cops_jax.datasets.schema import ImageFile

__all__ = ["ImageFile"]
