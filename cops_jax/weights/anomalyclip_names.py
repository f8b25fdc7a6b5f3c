"""AnomalyCLIP's prompts in the names and shapes of its authors' files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_DEEP_PROMPTS = "compound_prompts_text."
# Buffers that CLIP gives anew, and layers that are never used.
_UNUSED = ("token_", "tokenized_", "compound_prompt_projections.")


def is_own(names: Iterable[str]) -> bool:
  """Whether a file with these tensors is of this method."""
  names = set(names)
  others = ("t_n", "t_a", "extractor.", "vae_")
  return "ctx_pos" in names and not any(n.startswith(others) for n in names)


def select(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """A file's tensors without those that nothing reads."""
  return {
    name: array
    for name, array in tensors.items()
    if not name.startswith(_UNUSED)
  }


def why_not(trainable: Mapping[str, Any]) -> str:
  """Why the format cannot hold prompts; "" as it can hold all."""
  return ""


def to_authors_names(trainable: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Trainable parameters in the authors' names, shapes and memory order."""
  prompts = trainable["object_prompts"]
  context = np.asarray(prompts["context"])
  tensors = {"ctx_pos": context[None, :1], "ctx_neg": context[None, 1:]}
  for index, rows in enumerate(prompts.get("deep_prompts", ())):
    tensors[f"{_DEEP_PROMPTS}{index}"] = np.asarray(rows)
  return tensors


def from_authors_names(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """The inverse of `to_authors_names`.

  Raises:
    KeyError: a tensor is missing.
  """
  prompts = {
    "context": np.concatenate([tensors["ctx_pos"][0], tensors["ctx_neg"][0]])
  }
  depth = sum(name.startswith(_DEEP_PROMPTS) for name in tensors)
  if depth:
    prompts["deep_prompts"] = np.stack(
      [tensors[f"{_DEEP_PROMPTS}{index}"] for index in range(depth)]
    )
  return {"object_prompts": prompts}
