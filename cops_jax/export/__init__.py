"""A whole detector as one file that runs without its model's code."""

from cops_jax.export.jax import PLATFORMS, ExportedDetector, export, load

__all__ = ["PLATFORMS", "ExportedDetector", "export", "load"]
