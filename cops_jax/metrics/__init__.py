"""Detection metrics of a category's images and pixels.

Image level: AUROC, average precision, F1-max. Pixel level: these, AUPRO and
AUPRO from 200 thresholds, of the pixels of all masked images together.
`metrics.counts` has the definitions.
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
