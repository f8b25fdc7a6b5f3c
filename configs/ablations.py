"""Ablations: the full model without one of its parts.

  cops train --config=ablations:no_prototypes --workdir=runs/no_prototypes
  python -m tools.ablate --workdir=runs/ablations

The second command trains and evaluates all ablations. The full model is the
recipe demo with smoothing of patches. With --config=uniadet_demo:augmented, the
second command runs the ablations of UniADet.

Results on demo_unseen in percent: mean and standard deviation over seeds 0, 1
and 2, on a processor with AVX-512, with a version that drew codes for each
image. A processor with AVX2 rounds differently, which changes a single run by
up to one point.

                         image AUROC    image AP  pixel AUROC    pixel AP
  full                    84.2 ± 0.5  88.8 ± 0.3   91.6 ± 0.6  36.1 ± 0.4
  no_prototypes           84.5 ± 0.0  89.0 ± 0.0   91.9 ± 0.5  36.7 ± 0.6
  no_vae                  84.5 ± 0.3  89.0 ± 0.3   91.6 ± 1.0  36.4 ± 1.3
  no_smoothing            84.0 ± 0.5  88.2 ± 0.2   91.5 ± 0.7  37.6 ± 1.6
  no_distance_weighting   84.2 ± 0.5  88.8 ± 0.3   91.0 ± 0.7  35.5 ± 0.5
  no_deep_prompts         84.5 ± 0.3  89.0 ± 0.3   91.7 ± 0.4  36.1 ± 0.4
  no_value_path           83.6 ± 0.8  88.3 ± 0.5   89.8 ± 0.8  38.2 ± 0.4

The demo's CLIP is a toy, so these results predict little for real images.
"""

from cops_jax.config import recipe
from cops_jax.errors import UsageError, suggest

# Overrides of config fields, by method and name of the ablation.
ABLATIONS = {
  "cops": {
    "full": {},
    "no_prototypes": {"model.num_state_words": 0},
    "no_vae": {"model.num_category_words": 0},
    "no_smoothing": {"model.smoothing_window_patches": 1},
    "no_distance_weighting": {"evaluation.distance_weighting": False},
    "no_deep_prompts": {"model.deep_prompt_depth": 0},
    "no_value_path": {"model.num_value_layers": 0},
  },
  "uniadet": {
    "full": {},
    "no_augmentation": {"train.augmentation": "none"},
    "class_agnostic": {"train.augmentation": "class_agnostic"},
    "no_blur": {"evaluation.blur_sigma_pixels": 0.0},
  },
}


def find(method):
  """Returns the ablations of a method: overrides by name.

  Raises:
    UsageError: if the method has no ablations.
  """
  if method not in ABLATIONS:
    raise UsageError(
      f"the method {method!r} has no ablations; {' and '.join(ABLATIONS)} have"
      " them"
    )
  return ABLATIONS[method]


def ablate(config, name):
  """Returns a copy of a config with an ablation's overrides.

  Raises:
    UsageError: if the config's method has no ablation of that name.
  """
  known = find(config.method)
  if name not in known:
    raise UsageError(
      f"{name!r} is not an ablation{suggest(name, known)}; the ablations"
      f" are {', '.join(known)}"
    )
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(known[name])
  return config.lock()


def get_config(name="full"):
  """Returns an ablation of the demo.

  Args:
    name: name of an ablation of CoPS in `ABLATIONS`.
  """
  config = recipe("demo")
  config.model.smoothing_window_patches = 3
  # Every ablation except no_value_path has the same features with every seed.
  config.feature_cache.dtype = "float32"
  return ablate(config, name)
