"""A whole detector as one file that runs without the code of its model."""

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
