"""Detection metrics of a category's images and pixels.

Image metrics are AUROC, average precision and F1-max. Pixel metrics are the
same three, AUPRO and AUPRO-200, over the pixels of all images that have a mask.
`metrics.counts` defines them.
"""

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
