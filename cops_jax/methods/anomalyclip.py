"""AnomalyCLIP: two prompts for everything, see `models.anomalyclip`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from cops_jax import losses, scoring
from cops_jax.models import anomalyclip
from cops_jax.typing import Array, Float

TITLE = "AnomalyCLIP"
FIELDS = (
  "model.num_context_words",
  "model.deep_prompt_length",
  "model.deep_prompt_depth",
  "model.deep_prompt_cast",
)
NEEDS_MASKS = True
UPSAMPLING = "bilinear"


def build_model(config: Any, clip: Any, dtype: Any) -> anomalyclip.AnomalyCLIP:
  """See `Method`."""
  model, tokens = config.model, clip.tokens
  normal = (tokens.object, tokens.period, tokens.end)
  return anomalyclip.AnomalyCLIP(
    clip_config=clip.config,
    prefix_tokens=(tokens.start,),
    suffix_tokens=(normal, (*tokens.damaged, *normal)),
    feature_layers=tuple(model.feature_layers),
    num_value_layers=model.num_value_layers,
    num_context_words=model.num_context_words,
    deep_prompt_length=model.deep_prompt_length,
    deep_prompt_depth=model.deep_prompt_depth,
    deep_prompt_cast=model.deep_prompt_cast,
    temperature=model.temperature,
    dtype=dtype,
    attention=config.clip.attention,
  )


def init_trainable(
  model: anomalyclip.AnomalyCLIP, key: jax.Array, clip_params: Mapping[str, Any]
) -> Mapping[str, Any]:
  """See `Method`."""
  return anomalyclip.init_trainable(model, key)


def num_noise_samples(config: Any, *, is_training: bool) -> int:
  """None: nothing is sampled."""
  return 0


def num_prompt_tokens(config: Any, *, is_training: bool) -> float:
  """A step's two prompts, shared by its images; in evaluation too few to count.

  "damaged" counts as one token.
  """
  if not is_training:
    return 0.0
  return (2 * config.model.num_context_words + 9) / config.train.batch_size


def loss_terms(
  config: Any,
  model: anomalyclip.AnomalyCLIP,
  variables: Mapping[str, Any],
  features: tuple[Float[Array, "b d"], Float[Array, "b f n d"]],
  batch: Mapping[str, jax.Array],
) -> dict[str, jax.Array]:
  """See `Method`.

  The patch loss is that of probabilities upsampled to the mask's size.
  """
  image_logits, patch_logits = model.apply(variables, *features)
  masks, padding_mask = batch["mask"], batch["padding_mask"]
  pixels = scoring.upsample(jax.nn.softmax(patch_logits), masks.shape[-1])
  return {
    "image": losses.image_loss(image_logits, batch["label"], padding_mask),
    "patch": losses.patch_loss(
      pixels, masks.reshape(masks.shape[0], -1), 1, padding_mask
    ),
  }


def score(
  config: Any,
  model: anomalyclip.AnomalyCLIP,
  variables: Mapping[str, Any],
  features: tuple[Float[Array, "b d"], Float[Array, "b f n d"]],
  batch: Mapping[str, jax.Array],
) -> tuple[Float[Array, "b"], Float[Array, "b n"]]:
  """See `Method`."""
  return scoring.probabilities(*model.apply(variables, *features))
