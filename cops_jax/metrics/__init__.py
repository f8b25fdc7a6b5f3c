"""Detection metrics of a category's images and pixels.

Image level: AUROC, average precision, F1-max. Pixel level: these, AUPRO and
AUPRO from 200 thresholds, of the pixels of all masked images together.
`metrics.curves` has the definitions.
"""

from cops_jax.metrics.image import (
  METRICS,
  balanced_image_threshold,
  best_image_threshold,
  image_curves,
  image_metrics,
  undefined_reasons,
)
from cops_jax.metrics.pixels import (
  PIXEL_METRICS_MODES,
  ExactPixelMetrics,
  PixelMetrics,
  make_pixel_metrics,
)

__all__ = [
  "METRICS",
  "PIXEL_METRICS_MODES",
  "ExactPixelMetrics",
  "PixelMetrics",
  "balanced_image_threshold",
  "best_image_threshold",
  "image_curves",
  "image_metrics",
  "make_pixel_metrics",
  "undefined_reasons",
]
