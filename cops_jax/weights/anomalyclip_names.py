"""AnomalyCLIP's prompts in the names and shapes of its authors' files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
  from cops_jax.weights.clip import PretrainedCLIP

_DEEP_PROMPTS = "compound_prompts_text."
# Buffers that CLIP gives anew, and layers that are never used.
_UNUSED = ("token_", "tokenized_", "compound_prompt_projections.")

_LENGTH = 77  # Of a tokenised prompt.
_PLACEHOLDER = 343  # "x" in OpenAI's vocabulary.
_PROJECTION = 896


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


def unused_tensors(
  trainable: Mapping[str, Any], clip: PretrainedCLIP
) -> dict[str, np.ndarray]:
  """What else the authors' module has, and wants to find in a file.

  Args:
    trainable: the parameters.
    clip: that they were trained on.
  """
  embeddings = clip.params["text_model"]["embeddings"]["token_embedding"]
  table = np.asarray(embeddings["embedding"], np.float32)
  prompts, tokens = trainable["object_prompts"], clip.tokens
  num_words, width = prompts["context"].shape[1:]
  tensors = {}
  for state, words in (("pos", ()), ("neg", tokens.damaged)):
    ids = np.zeros(_LENGTH, np.int32)
    sentence = (
      *(tokens.start, *num_words * [min(_PLACEHOLDER, len(table) - 1)]),
      *(*words, tokens.object, tokens.period, tokens.end),
    )
    ids[: len(sentence)] = sentence
    tensors[f"token_prefix_{state}"] = table[ids[:1]][None, None]
    tensors[f"token_suffix_{state}"] = table[ids[1 + num_words :]][None, None]
    tensors[f"tokenized_prompts_{state}"] = ids[None, None]
  for index in range(len(prompts.get("deep_prompts", ()))):
    name = f"compound_prompt_projections.{index}"
    tensors[f"{name}.weight"] = np.zeros((_PROJECTION, width), np.float32)
    tensors[f"{name}.bias"] = np.zeros(_PROJECTION, np.float32)
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
