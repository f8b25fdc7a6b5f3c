"""Which recipes a table of a paper is made of, and on which data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cops_jax import methods
from cops_jax.config import recipe
from cops_jax.errors import InputError
from cops_jax.weights import settle_dtype

# By method. The first is evaluated on all data sets but the one that it was
# trained on, and the second on that.
RECIPES = {
  "cops": ("visa", "mvtec"),
  "anomalyclip": ("anomalyclip_mvtec", "anomalyclip_visa"),
  "prompt_ensemble": ("prompt_ensemble",),
}


def make_configs(
  names: Sequence[str], datasets: Sequence[str], overrides: Mapping[str, Any]
) -> dict[str, Any]:
  """The recipes with the data sets that each is evaluated on.

  Vision features are cached, in the type that they are computed in: as exact,
  and computed once for all seeds.

  Args:
    names: of methods.
    datasets: to evaluate.
    overrides: values of config fields by dotted name, for all recipes whose
      method reads them.

  Returns:
    ConfigDicts by recipe; none of a recipe that has nothing to evaluate.

  Raises:
    InputError: there is no table of a method.
  """
  configs = {}
  for method in names:
    if method not in RECIPES:
      raise InputError(
        f"there is no table of the method {method!r}; known are"
        f" {', '.join(RECIPES)}"
      )
    unread = methods.unread_fields(method)
    own = {
      name: value for name, value in overrides.items() if name not in unread
    }
    auxiliary = None
    if is_trained(method):
      auxiliary = recipe(RECIPES[method][0]).train.dataset
    for place, name in enumerate(RECIPES[method]):
      config = recipe(name)
      config.evaluation.datasets = tuple(
        dataset
        for dataset in datasets
        if (dataset == auxiliary) == (place == 1)
      )
      config.update_from_flattened_dict(own)
      config = settle_dtype(config, None)
      if "feature_cache.dtype" not in own:
        config.feature_cache.dtype = config.clip.dtype
      if config.evaluation.datasets:
        configs[name] = config
  return configs


def is_trained(method: str) -> bool:
  """Whether a method has something to train."""
  return methods.find(method).IS_TRAINED


def make_runs(
  configs: Mapping[str, Any], seeds: Sequence[int]
) -> list[tuple[str, int]]:
  """Recipes and seeds; of what is not trained one, as seeds change nothing."""
  return [
    (name, seed)
    for name, config in configs.items()
    for seed in (seeds if is_trained(config.method) else seeds[:1])
  ]


def needed_datasets(configs: Mapping[str, Any]) -> list[str]:
  """All that is trained on or evaluated, each once."""
  names = {}
  for config in configs.values():
    if is_trained(config.method):
      names[config.train.dataset] = None
    names |= dict.fromkeys(config.evaluation.datasets)
  return list(names)
