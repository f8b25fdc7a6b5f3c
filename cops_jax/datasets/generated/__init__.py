"""Generated images of industrial inspection with defects and masks.

They are used for the demo's data sets (6 training and 6 evaluation categories)
and for pretraining the toy CLIP. The pretraining has many other categories, but
never the evaluation categories or the unseen kinds of defects.

Every image is a function of a given `numpy.random.Generator`. Lengths are in
pixels of a 112-pixel image and scale with the requested size.
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
