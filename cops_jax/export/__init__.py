"""A whole detector as one file that runs without its model's code."""

from cops_jax.export.jax import (
  PLATFORMS,
  ExportedDetector,
  export,
  load,
  require_file_name,
)

__all__ = [
  "PLATFORMS",
  "ExportedDetector",
  "export",
  "load",
  "require_file_name",
]
