"""Hand-written prompts and no training, see `models.prompt_ensemble`.

What is trained elsewhere is computed here: the tree holds both states' text
features, so that CLIP's text tower runs once, and is no part of exports.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from cops_jax import scoring
from cops_jax.models.anomalyclip import compare
from cops_jax.models.prompt_ensemble import PromptEnsemble, encode_states
from cops_jax.models.texts import read_texts
from cops_jax.typing import Array, Float

TITLE = "Prompt ensemble"
FIELDS = (
  "model.texts",
  "model.normal_texts",
  "model.anomalous_texts",
  "model.object_name",
  "model.use_category_names",
)
NEEDS_MASKS = False
UPSAMPLING = "bilinear"
loss_terms = None


def build_model(config: Any, clip: Any, dtype: Any) -> PromptEnsemble:
  """See `Method`.

  Raises:
    InputError: see `read_texts` and `PretrainedCLIP.tokenize`.
  """
  model = config.model
  return PromptEnsemble(
    clip_config=clip.config,
    tokens=_tokenize(config, clip, model.object_name),
    feature_layers=tuple(model.feature_layers),
    num_value_layers=model.num_value_layers,
    temperature=model.temperature,
    dtype=dtype,
    attention=config.clip.attention,
  )


def _tokenize(config, clip, name):
  model = config.model
  texts = read_texts(model.texts, model.normal_texts, model.anomalous_texts)
  return tuple(
    tuple(clip.tokenize(sentences)) for sentences in texts.sentences(name)
  )


def init_trainable(
  model: PromptEnsemble, key: jax.Array, clip_params: Mapping[str, Any]
) -> Mapping[str, Any]:
  """The text features of both states, (2, d); the key is not used."""
  (text_features,) = encode_states(model, clip_params, [model.tokens])
  return {"ensemble": {"text_features": text_features}}


def category_text_features(
  config: Any, model: PromptEnsemble, clip: Any, categories: Sequence[str]
) -> dict[str, Float[Array, "s=2 d"]]:
  """Text features with each category's name in place of the object's.

  Args:
    config, model: see `Method`.
    clip: a `weights.PretrainedCLIP`.
    categories: names; "metal_nut" is said as "metal nut".

  Raises:
    InputError: see `PretrainedCLIP.tokenize`.
  """
  states = [
    _tokenize(config, clip, name.replace("_", " ")) for name in categories
  ]
  features = encode_states(model, clip.params, states)
  return dict(zip(categories, features, strict=True))


def num_noise_samples(config: Any, *, is_training: bool) -> int:
  """None: nothing is sampled."""
  return 0


def num_prompt_tokens(config: Any, *, is_training: bool) -> float:
  """None: texts are encoded once."""
  return 0.0


def score(
  config: Any,
  model: PromptEnsemble,
  variables: Mapping[str, Any],
  features: tuple[Float[Array, "b d"], Float[Array, "b f n d"]],
  batch: Mapping[str, jax.Array],
) -> tuple[Float[Array, "b"], Float[Array, "b n"]]:
  """See `Method`.

  A batch may have text_features (b, 2, d) of its own images' categories.
  """
  text_features = variables["params"]["ensemble"]["text_features"]
  text_features = batch.get("text_features", text_features)
  return scoring.probabilities(
    *compare(*features, text_features, model.temperature)
  )
