"""Kept for data prepared by earlier versions: see `cops_jax.datasets.schema`.

TFDS imports the module that a prepared copy's features.json names.
"""

from cops_jax.datasets.schema import ImageFile

__all__ = ["ImageFile"]
