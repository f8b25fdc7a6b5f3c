"""CoPS's trained prompts in the names and shapes of its authors' files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import flax.traverse_util
import numpy as np

_DEEP_PROMPTS = "compound_prompts_text."
# Left over in files of the authors' training; nothing reads them.
_UNUSED = ("projector", "extractor_.", "token_", "tokenized_")
# In either names. Evaluation does without it, and released files do too.
ENCODER = (
  "vae_encoder.",
  *("category_vae.encoder", "category_vae.mean", "category_vae.log_var"),
)
# Parts that the format always has, and the words that they serve.
_CONDITIONAL_WORDS = {
  "prototype_extractor": "state",
  "category_vae": "category",
}

_LINEAR_LAYERS = {
  "prototype_extractor.out": "extractor.attn.out_proj",
  "prototype_extractor.c_fc": "extractor.mlp.c_fc",
  "prototype_extractor.c_proj": "extractor.mlp.c_proj",
  "category_vae.encoder": "vae_encoder.net.0",
  "category_vae.mean": "vae_encoder.mean",
  "category_vae.log_var": "vae_encoder.log_var",
  "category_vae.decoder": "vae_decoder.net.0",
  "category_vae.output": "vae_decoder.net.2",
}
_LAYER_NORMS = {
  "prototype_extractor.ln_1": "extractor.ln_1",
  "prototype_extractor.ln_2": "extractor.ln_2",
}
_STACKED = ("query", "key", "value")


def is_own(names: Iterable[str]) -> bool:
  """Whether a file with these tensors is of this method."""
  return any(name.startswith(("t_n", "t_a", "extractor.")) for name in names)


def select(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """A file's tensors without those that nothing reads."""
  return {
    name: array
    for name, array in tensors.items()
    if not name.startswith(_UNUSED)
  }


def why_not(trainable: Mapping[str, Any]) -> str:
  """Why the format cannot hold prompts; "" if it can."""
  absent = [
    words for part, words in _CONDITIONAL_WORDS.items() if part not in trainable
  ]
  if not absent:
    return ""
  return f"has no prompts without {' and '.join(absent)} words"


def to_authors_names(trainable: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Trainable parameters in the authors' names, shapes and memory order.

  What may be absent, the encoder and deep prompts, stays absent.
  """
  tree = {
    name: np.asarray(array)
    for name, array in flax.traverse_util.flatten_dict(
      trainable, sep="."
    ).items()
  }
  context = tree["prompt_learner.context"]
  queries = tree["prototype_extractor.queries"]
  stacked = [f"prototype_extractor.{name}" for name in _STACKED]
  tensors = {
    "ctx_pos": context[None, :1],
    "ctx_neg": context[None, 1:],
    "t_n": queries[0],
    "t_a": queries[1],
    "extractor.attn.in_proj_weight": np.concatenate(
      [tree[f"{name}.kernel"].T for name in stacked]
    ),
    "extractor.attn.in_proj_bias": np.concatenate(
      [tree[f"{name}.bias"] for name in stacked]
    ),
  }
  for ours, theirs in _LINEAR_LAYERS.items():
    if f"{ours}.kernel" in tree:
      tensors[f"{theirs}.weight"] = tree[f"{ours}.kernel"].T
      tensors[f"{theirs}.bias"] = tree[f"{ours}.bias"]
  for ours, theirs in _LAYER_NORMS.items():
    tensors[f"{theirs}.weight"] = tree[f"{ours}.scale"]
    tensors[f"{theirs}.bias"] = tree[f"{ours}.bias"]
  for index, prompts in enumerate(tree.get("prompt_learner.deep_prompts", ())):
    tensors[f"{_DEEP_PROMPTS}{index}"] = prompts
  return tensors


def unused_tensors(
  trainable: Mapping[str, Any], clip: Any
) -> dict[str, np.ndarray]:
  """None: the authors' module loads a file without what it does not use."""
  return {}


def from_authors_names(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """The inverse of `to_authors_names`.

  Raises:
    KeyError: a tensor is missing, other than the encoder's.
  """
  tree = {
    "prompt_learner.context": np.concatenate(
      [tensors["ctx_pos"][0], tensors["ctx_neg"][0]]
    ),
    "prototype_extractor.queries": np.stack([tensors["t_n"], tensors["t_a"]]),
  }
  weights = np.split(tensors["extractor.attn.in_proj_weight"], 3)
  biases = np.split(tensors["extractor.attn.in_proj_bias"], 3)
  for name, weight, bias in zip(_STACKED, weights, biases, strict=True):
    tree[f"prototype_extractor.{name}.kernel"] = weight.T
    tree[f"prototype_extractor.{name}.bias"] = bias
  for ours, theirs in _LINEAR_LAYERS.items():
    if f"{theirs}.weight" in tensors:
      tree[f"{ours}.kernel"] = tensors[f"{theirs}.weight"].T
      tree[f"{ours}.bias"] = tensors[f"{theirs}.bias"]
  for ours, theirs in _LAYER_NORMS.items():
    tree[f"{ours}.scale"] = tensors[f"{theirs}.weight"]
    tree[f"{ours}.bias"] = tensors[f"{theirs}.bias"]
  depth = sum(name.startswith(_DEEP_PROMPTS) for name in tensors)
  if depth:
    tree["prompt_learner.deep_prompts"] = np.stack(
      [tensors[f"{_DEEP_PROMPTS}{index}"] for index in range(depth)]
    )
  return flax.traverse_util.unflatten_dict(tree, sep=".")
