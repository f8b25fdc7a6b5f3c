"""Converts prompts from and to the names and shapes in their authors' files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.traverse_util
import numpy as np

if TYPE_CHECKING:
  from cops_jax.weights.clip import PretrainedCLIP

# CoPS's encoder, which evaluation does not need and the released files lack.
ENCODER = (
  *("category_vae.encoder", "category_vae.mean", "category_vae.log_var"),
  "vae_encoder.",
)
# Leftovers of the authors' training and outputs of CLIP, which nothing reads.
_UNUSED = (
  *("projector", "extractor_.", "token_", "tokenized_"),
  "compound_prompt_projections.",
)
_DEEP_PROMPTS = "compound_prompts_text."
_QKV = tuple(
  f"prototype_extractor.{part}" for part in ("query", "key", "value")
)

# Sizes of the tensors that AnomalyCLIP's module reads and never uses.
_PROMPT_LENGTH = 77
_PLACEHOLDER = 343  # "x" in OpenAI's vocabulary.
_PROJECTION_WIDTH = 896


class _Part(NamedTuple):
  """Names of parameters here and in the authors' files, and conversions."""

  ours: tuple[str, ...]
  theirs: tuple[str, ...]
  to_theirs: Callable[..., Iterable[np.ndarray]] = lambda array: (array,)
  to_ours: Callable[..., Iterable[np.ndarray]] = lambda array: (array,)


def _transpose(array):
  return (array.T,)


def _linear(ours, theirs):
  return (
    _Part((f"{ours}.kernel",), (f"{theirs}.weight",), _transpose, _transpose),
    _Part((f"{ours}.bias",), (f"{theirs}.bias",)),
  )


def _layer_norm(name):
  ours, theirs = f"prototype_extractor.{name}", f"extractor.{name}"
  return (
    _Part((f"{ours}.scale",), (f"{theirs}.weight",)),
    _Part((f"{ours}.bias",), (f"{theirs}.bias",)),
  )


def _context(module):
  return _Part(
    (f"{module}.context",),
    ("ctx_pos", "ctx_neg"),
    lambda context: (context[None, :1], context[None, 1:]),
    lambda normal, anomaly: (np.concatenate([normal[0], anomaly[0]]),),
  )


# The module with the words, and all parts except the deep prompts, by method.
_FORMATS = {
  "cops": (
    "prompt_learner",
    (
      _context("prompt_learner"),
      _Part(
        ("prototype_extractor.queries",),
        ("t_n", "t_a"),
        tuple,
        lambda *queries: (np.stack(queries),),
      ),
      _Part(
        tuple(f"{name}.kernel" for name in _QKV),
        ("extractor.attn.in_proj_weight",),
        lambda *kernels: (np.concatenate([kernel.T for kernel in kernels]),),
        lambda weight: [part.T for part in np.split(weight, 3)],
      ),
      _Part(
        tuple(f"{name}.bias" for name in _QKV),
        ("extractor.attn.in_proj_bias",),
        lambda *biases: (np.concatenate(biases),),
        lambda bias: np.split(bias, 3),
      ),
      *_linear("prototype_extractor.out", "extractor.attn.out_proj"),
      *_linear("prototype_extractor.c_fc", "extractor.mlp.c_fc"),
      *_linear("prototype_extractor.c_proj", "extractor.mlp.c_proj"),
      *_linear("category_vae.encoder", "vae_encoder.net.0"),
      *_linear("category_vae.mean", "vae_encoder.mean"),
      *_linear("category_vae.log_var", "vae_encoder.log_var"),
      *_linear("category_vae.decoder", "vae_decoder.net.0"),
      *_linear("category_vae.output", "vae_decoder.net.2"),
      *_layer_norm("ln_1"),
      *_layer_norm("ln_2"),
    ),
  ),
  "anomalyclip": ("object_prompts", (_context("object_prompts"),)),
}
METHODS = tuple(_FORMATS)


def find_method(names: Iterable[str]) -> str | None:
  """Returns the method that a file's tensors belong to, or None if unknown."""
  names = tuple(names)
  if any(
    name.startswith(("t_n", "t_a", "extractor.", "vae_")) for name in names
  ):
    return "cops"
  return "anomalyclip" if "ctx_pos" in names else None


def select(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns the tensors of a file that are used."""
  return {
    name: array
    for name, array in tensors.items()
    if not name.startswith(_UNUSED)
  }


def to_authors_names(
  trainable: Mapping[str, Any], method: str
) -> dict[str, np.ndarray]:
  """Converts prompts to tensors with the authors' names, shapes and order.

  CoPS's encoder and the deep prompts can be absent. The method is in METHODS.
  """
  module, parts = _FORMATS[method]
  flat = {
    name: np.asarray(array)
    for name, array in flax.traverse_util.flatten_dict(
      trainable, sep="."
    ).items()
  }
  tensors = {}
  for ours, theirs, to_theirs, _ in parts:
    if all(name in flat for name in ours):
      arrays = to_theirs(*(flat[name] for name in ours))
      tensors |= zip(theirs, arrays, strict=True)
  for index, rows in enumerate(flat.get(f"{module}.deep_prompts", ())):
    tensors[f"{_DEEP_PROMPTS}{index}"] = rows
  return tensors


def from_authors_names(
  tensors: Mapping[str, np.ndarray], method: str
) -> dict[str, Any]:
  """Returns a tree of prompts. This is the inverse of `to_authors_names`."""
  module, parts = _FORMATS[method]
  flat = {}
  for ours, theirs, _, to_ours in parts:
    if all(name in tensors for name in theirs):
      arrays = to_ours(*(tensors[name] for name in theirs))
      flat |= zip(ours, arrays, strict=True)
  depth = sum(name.startswith(_DEEP_PROMPTS) for name in tensors)
  if depth:
    flat[f"{module}.deep_prompts"] = np.stack(
      [tensors[f"{_DEEP_PROMPTS}{index}"] for index in range(depth)]
    )
  return flax.traverse_util.unflatten_dict(flat, sep=".")


def from_uniadet_head(
  tensors: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
  """Returns UniADet's weights from a file of its reproduction.

  UniADet's authors have published no weights. The reproduction in the
  repository awesome-Industry-anomaly-detection-Reproduction names weights by
  task and layer: `head.w_cls.12`, `head.w_seg.12`. The result is empty for
  other files.
  """
  found = {
    name: re.fullmatch(r"head\.w_(cls|seg)\.(\d+)", name) for name in tensors
  }
  if not all(found.values()):
    return {}
  ours = {"cls": "image_weights", "seg": "patch_weights"}
  return {
    f"{ours[match[1]]}.layer_{match[2]}": tensors[name]
    for name, match in found.items()
  }


def unused_tensors(
  trainable: Mapping[str, Any], backbone: PretrainedCLIP
) -> dict[str, np.ndarray]:
  """Returns the tensors that AnomalyCLIP's module reads and never uses."""
  embeddings = backbone.params["text_model"]["embeddings"]["token_embedding"]
  table = np.asarray(embeddings["embedding"], np.float32)
  prompts, tokens = trainable["object_prompts"], backbone.tokens
  num_words, width = prompts["context"].shape[1:]
  tensors = {}
  for state, words in (("pos", ()), ("neg", tokens.damaged)):
    ids = np.zeros(_PROMPT_LENGTH, np.int32)
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
    tensors[f"{name}.weight"] = np.zeros((_PROJECTION_WIDTH, width), np.float32)
    tensors[f"{name}.bias"] = np.zeros(_PROJECTION_WIDTH, np.float32)
  return tensors
