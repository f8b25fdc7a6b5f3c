"""The end of training at the first step with a NaN or an infinity."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cops_jax.errors import InputError
from cops_jax.files import write_file
from cops_jax.paths import AnyPath
from cops_jax.runtime.processes import agree, gather_objects, in_first_process
from cops_jax.training.hooks import Position, Save, StepTerms

_MAX_SHOWN = 3


class StopNonFinite:
  """Ends training at the first step with a NaN or an infinity."""

  def __init__(
    self,
    workdir: AnyPath,
    save: Save,
    take_step: Callable[[Position, Mapping[str, np.ndarray]], Mapping],
    errors: Sequence[Exception] = (),
  ):
    """Makes a check that has seen no step yet.

    Args:
      workdir: receives non_finite.json.
      save: to save the state before the step with.
      take_step: from a position, which stays, and this process's part of a
        batch to the terms of a step on it.
      errors: receives why this process has no batch; that makes a step of a
        cluster not finite in all processes.
    """
    self._path, self._save = workdir / "non_finite.json", save
    self._take_step, self._errors = take_step, errors

  def check(self, done: StepTerms, position: Position) -> None:
    """Checks fetched terms, which are not among the recent ones yet.

    Raises:
      InputError: a term is not finite, or a process has no batch; the state
        before is saved.
    """
    names = _not_finite(done.terms)
    if not names:
      return
    self._save.finish(position)
    agree(self._errors)
    examples = dict(_take_apart(done.batch))
    at_fault = [
      path
      for path, batch in examples.items()
      if _not_finite(self._take_step(position, batch))
    ]
    content = {
      "step": done.step,
      "terms": {name: repr(value) for name, value in done.terms.items()},
      "examples": list(examples),
      "not_finite_alone": at_fault,
    }
    in_first_process(
      write_file, self._path, json.dumps(content, indent=2) + "\n"
    )
    before = int(position.state.step)
    raise InputError(
      f"step {done.step} is not finite in: {', '.join(names)}."
      f" {_blame(at_fault, len(examples))}. {self._path} lists the terms and"
      f" the batch's examples; checkpoint {before} is the state"
      " before, from which the same command takes that step again."
    )


def _not_finite(terms):
  return [name for name, value in terms.items() if not math.isfinite(value)]


def _take_apart(
  batch: Mapping[str, np.ndarray],
) -> Iterator[tuple[str, dict[str, Any]]]:
  """A batch of each of the global batch's examples alone, by its path."""
  masks = gather_objects(batch["padding_mask"])
  for process, mask in enumerate(masks):
    for row in np.flatnonzero(mask):
      example = gather_objects({name: batch[name][row] for name in batch})
      example = example[process]
      # In all rows, as what is padding is multiplied by 0, and NaN stays.
      alone = {
        name: np.stack([value] * len(mask)) for name, value in example.items()
      }
      yield str(example["path"]), alone


def _blame(at_fault, num_examples):
  if not at_fault:
    return "Each of its examples is finite alone"
  if len(at_fault) == num_examples:
    return (
      "So it is with each of its examples alone: the parameters are at fault"
    )
  more = ", ..." if len(at_fault) > _MAX_SHOWN else ""
  return f"The fault is in {', '.join(at_fault[:_MAX_SHOWN])}{more}"
