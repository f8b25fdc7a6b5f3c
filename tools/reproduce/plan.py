"""The recipes of the papers' tables, and the data sets that each needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cops_jax import methods
from cops_jax.config import recipe
from cops_jax.errors import InputError
from cops_jax.weights import settle_dtype
from tools.runs import is_trained

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
  """Returns recipes with the data sets that each is evaluated on.

  Vision features are cached, in the type that they are computed in: as exact,
  and computed once for all seeds.

  Args:
    names: of methods.
    datasets: to evaluate.
    overrides: values of config fields by dotted name, for all recipes whose
      method reads them.

  Returns:
    ConfigDicts by recipe, without recipes that have nothing to evaluate.

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
    first = recipe(RECIPES[method][0])
    seen = first.train.dataset if is_trained(first) else None
    for name in RECIPES[method]:
      config = recipe(name)
      config.evaluation.datasets = tuple(
        dataset
        for dataset in datasets
        if (dataset == seen) == (name != RECIPES[method][0])
      )
      config.update_from_flattened_dict(own)
      config = settle_dtype(config, None)
      if "feature_cache.dtype" not in own:
        config.feature_cache.dtype = config.clip.dtype
      if config.evaluation.datasets:
        configs[name] = config
  return configs


def needed_datasets(configs: Mapping[str, Any]) -> list[str]:
  """Returns all data sets that are trained on or evaluated, each once."""
  names = {}
  for config in configs.values():
    if is_trained(config):
      names[config.train.dataset] = None
    names |= dict.fromkeys(config.evaluation.datasets)
  return list(names)
