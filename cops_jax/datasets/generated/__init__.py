"""Generated industrial-inspection images with defects and pixel masks.

Two uses: the embedded demo data set (6 training and 6 evaluation categories)
and the pretraining of a tiny CLIP, which draws on many further categories but
never on the evaluation categories or on the unseen defect kinds.

Everything is a function of an explicit `numpy.random.Generator`. Lengths are
in pixels of a 112-pixel image and scale with the requested size.
"""

from cops_jax.datasets.generated.categories import (
  CATEGORIES,
  EVALUATION_CATEGORIES,
  TRAINING_CATEGORIES,
  Category,
)
from cops_jax.datasets.generated.defects import (
  DEFECTS,
  SEEN_DEFECTS,
  UNSEEN_DEFECTS,
)
from cops_jax.datasets.generated.images import generate, generate_pair

__all__ = [
  "CATEGORIES",
  "DEFECTS",
  "EVALUATION_CATEGORIES",
  "SEEN_DEFECTS",
  "TRAINING_CATEGORIES",
  "UNSEEN_DEFECTS",
  "Category",
  "generate",
  "generate_pair",
]
