"""Detection metrics of images and pixels; `metrics.counts` defines them."""

from cops_jax.metrics.counts import (
  METRICS,
  Counts,
  count_images,
  undefined_reasons,
)
from cops_jax.metrics.pixels import (
  PIXEL_METRICS_MODES,
  ExactPixelMetrics,
  PixelMetrics,
)

__all__ = [
  "METRICS",
  "PIXEL_METRICS_MODES",
  "Counts",
  "ExactPixelMetrics",
  "PixelMetrics",
  "count_images",
  "undefined_reasons",
]
