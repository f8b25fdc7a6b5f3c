"""Zero-shot evaluation: scores and maps of whole data sets."""

import importlib

# Imported when they are used, as tables of results need no model.
_HOMES = {
  "DatasetEvaluator": "dataset",
  "EvaluationOptions": "dataset",
  "evaluate_dataset": "dataset",
  "make_predict_step": "step",
}

__all__ = sorted(_HOMES)


def __getattr__(name):
  if name not in _HOMES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  module = importlib.import_module(f"{__name__}.{_HOMES[name]}")
  return getattr(module, name)
