"""CoPS: prompts synthesised from each image, see `models.cops`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from cops_jax import losses, scoring
from cops_jax.models import cops
from cops_jax.typing import Array, Float

TITLE = "CoPS"
FIELDS = (
  "model.smoothing_window_patches",
  "model.num_heads",
  "model.num_context_words",
  "model.num_state_words",
  "model.num_category_words",
  "model.deep_prompt_length",
  "model.deep_prompt_depth",
  "model.prototype_injection",
  "train.reconstruction",
  "evaluation.num_samples",
  "evaluation.distance_weighting",
  "evaluation.alpha",
  "evaluation.beta",
)
NEEDS_MASKS = False
UPSAMPLING = "nearest"


def build_model(config: Any, clip: Any, dtype: Any) -> cops.CoPS:
  """See `Method`."""
  model, tokens = config.model, clip.tokens
  suffix = (tokens.period, tokens.end)
  if not model.num_category_words:
    suffix = (tokens.object, *suffix)
  return cops.CoPS(
    clip_config=clip.config,
    prefix_tokens=(tokens.start,),
    suffix_tokens=suffix,
    feature_layers=tuple(model.feature_layers),
    num_value_layers=model.num_value_layers,
    smoothing_window=model.smoothing_window_patches,
    num_heads=model.num_heads,
    num_context_words=model.num_context_words,
    num_state_words=model.num_state_words,
    num_category_words=model.num_category_words,
    deep_prompt_length=model.deep_prompt_length,
    deep_prompt_depth=model.deep_prompt_depth,
    prototype_injection=model.prototype_injection,
    temperature=model.temperature,
    dtype=dtype,
    attention=config.clip.attention,
  )


def init_trainable(
  model: cops.CoPS, key: jax.Array, clip_params: Mapping[str, Any]
) -> Mapping[str, Any]:
  """See `Method`."""
  return cops.init_trainable(model, key)


def num_noise_samples(config: Any, *, is_training: bool) -> int:
  """Category codes: one in training."""
  if not config.model.num_category_words:
    return 0
  return 1 if is_training else config.evaluation.num_samples


def num_prompt_tokens(config: Any, *, is_training: bool) -> float:
  """In evaluation the context counts once, state words once for each state.

  The rest counts once for each state and code. In training every prompt is
  whole.
  """
  model = config.model
  suffix = model.num_category_words + 2
  num_tokens = 2 * (1 + model.num_context_words + model.num_state_words)
  if is_training:
    return float(num_tokens + 2 * suffix)
  codes = num_noise_samples(config, is_training=False) or 1
  return float(num_tokens + 2 * codes * suffix)


def loss_terms(
  config: Any,
  model: cops.CoPS,
  variables: Mapping[str, Any],
  features: tuple[Float[Array, "b d"], Float[Array, "b f n d"]],
  batch: Mapping[str, jax.Array],
) -> dict[str, jax.Array]:
  """See `Method`.

  Without state words there are no gather and scatter terms, without category
  words no kl and reconstruction terms.
  """
  noise = batch.get("noise")
  outputs = model.apply(variables, *features, noise, is_training=True)
  padding_mask, counts = batch["padding_mask"], batch["mask_counts"]
  patch_area = model.clip_config.vision_config.patch_size**2
  terms = {
    "image": losses.image_loss(
      outputs.image_logits, batch["label"], padding_mask
    ),
    "patch": losses.patch_loss(
      outputs.patch_probability, counts, patch_area, padding_mask
    ),
  }
  if model.num_state_words:
    distances = outputs.distances
    terms["gather"] = losses.gather_loss(distances, counts, padding_mask)
    terms["scatter"] = losses.scatter_loss(distances, counts, padding_mask)
  if model.num_category_words:
    terms["kl"] = losses.kl_loss(
      outputs.code_mean, outputs.code_log_var, padding_mask
    )
    terms["reconstruction"] = losses.reconstruction_loss(
      features[0],
      outputs.category_bias[:, 0],
      padding_mask,
      config.train.reconstruction,
    )
  return terms


def score(
  config: Any,
  model: cops.CoPS,
  variables: Mapping[str, Any],
  features: tuple[Float[Array, "b d"], Float[Array, "b f n d"]],
  batch: Mapping[str, jax.Array],
) -> tuple[Float[Array, "b"], Float[Array, "b n"]]:
  """See `Method`."""
  settings = config.evaluation
  noise = batch.get("noise")
  outputs = model.apply(variables, *features, noise, is_training=False)
  patch_scores = scoring.weighted_patch_scores(
    outputs.patch_probability,
    outputs.distances if settings.distance_weighting else None,
    settings.alpha,
  )
  image_scores = scoring.image_scores(
    outputs.image_logits, patch_scores, settings.beta
  )
  return image_scores, patch_scores
