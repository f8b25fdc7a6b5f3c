"""AnomalyCLIP: two learned prompts that name no category, on a frozen CLIP.

Zhou et al., AnomalyCLIP: Object-agnostic Prompt Learning for Zero-shot Anomaly
Detection, ICLR 2024, arXiv 2310.18961.

The prompts are `[learned words] object .` for normal and `[learned words]
damaged object .` for anomalous images, with deep prompts in the text tower.
They are the same for all images. The image feature and the patch features of
the value path are compared with both text features: probabilities are the
softmax of `cosine / temperature`. The image score is the image probability, and
the anomaly map is computed from the patch probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cops_jax import losses, scoring
from cops_jax.backbones.clip import CLIP
from cops_jax.backbones.features import init_parts
from cops_jax.backbones.prompts import LearnedPrompts
from cops_jax.typing import Array, Float

TITLE = "AnomalyCLIP"
FIELDS = (
  "model.num_context_words",
  "model.deep_prompt_length",
  "model.deep_prompt_depth",
  "model.deep_prompt_cast",
)
IS_TRAINED = USES_TEXT = True


@jax.custom_vjp
def round_to_float16(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
  """Rounds values in the forward and gradients in the backward pass to float16.

  The authors' code does this to the deep prompts of each state.
  """
  # XLA would drop a pair of casts as excess precision, and `reduce_precision`
  # alone flushes float16's subnormal numbers to zero.
  step = 2.0**-24
  return jnp.where(
    jnp.abs(x) < 2.0**-14,
    jnp.round(x / step) * step,
    jax.lax.reduce_precision(x, exponent_bits=5, mantissa_bits=10),
  )


round_to_float16.defvjp(
  lambda x: (round_to_float16(x), None),
  lambda _, gradient: (round_to_float16(gradient),),
)


class AnomalyCLIP(nn.Module):
  """Compares images with the two prompts; see `methods.Model`.

  CLIP computes in its own type; all learned parameters are float32.

  Attributes:
    config, backbone: see `methods.Model`.
    prefix_tokens: token ids before the learned words.
    suffix_tokens: token ids after the learned words, for each state.
  """

  config: Any
  backbone: CLIP
  prefix_tokens: tuple[int, ...]
  suffix_tokens: tuple[tuple[int, ...], tuple[int, ...]]

  needs_masks = True
  needs_noise = has_layer_tokens = False
  upsampling = "bilinear"

  def setup(self):
    settings = self.config.model
    self.object_prompts = LearnedPrompts(
      settings,
      self.backbone.config.text_config.hidden_size,
      settings.num_context_words,
    )

  @nn.nowrap
  def num_prompt_tokens(self, *, is_training: bool) -> float:
    """Returns an image's share of the tokens of a step's two prompts.

    "damaged" counts as one token. In evaluation the result is 0, because the
    share is negligible.
    """
    if not is_training:
      return 0.0
    num_tokens = 2 * self.config.model.num_context_words + 9
    return num_tokens / self.config.train.batch_size

  @nn.nowrap
  def init_trainable(
    self, key: jax.Array, backbone_params: Mapping[str, Any] | None = None
  ) -> Mapping[str, Any]:
    """Returns random trainable parameters, float32."""
    return init_parts(self, key, lambda model: model.object_prompts())

  def text_features(self) -> Float[Array, "s=2 d"]:
    """Returns the text features of both prompts, L2-normalised."""
    words, deep_prompts = self.object_prompts()
    prefix = self.backbone.embed_tokens(jnp.array(self.prefix_tokens))
    features = []
    # The prompts differ in length. Each has its own copy of the deep prompts,
    # so that gradients are rounded before they are added.
    for state, tokens in enumerate(self.suffix_tokens):
      suffix = self.backbone.embed_tokens(jnp.array(tokens))
      copy = deep_prompts
      if self.config.model.deep_prompt_cast == "float16":
        copy = round_to_float16(copy)
      features.append(
        self.backbone.encode_prompts(
          [jnp.concatenate([prefix, words[state], suffix])[None]], copy
        )
      )
    return scoring.normalize(jnp.concatenate(features).astype(jnp.float32))

  def __call__(
    self,
    image_features: Float[Array, "b d"],
    patch_features: Float[Array, "b f n d"],
  ) -> tuple[Float[Array, "b s=2"], Float[Array, "b f n s=2"]]:
    """Returns logits of images and patches; index 1 of `s` is anomaly."""
    return scoring.text_logits(
      image_features,
      patch_features,
      self.text_features(),
      self.config.model.temperature,
    )

  def loss_terms(
    self,
    features: tuple[Float[Array, "b d"], Float[Array, "b f n d"]],
    batch: Mapping[str, jax.Array],
  ) -> dict[str, jax.Array]:
    """Returns the terms of the loss; see `methods.Model`.

    The patch loss compares each pixel's probability with the mask.
    """
    image_logits, patch_logits = self(*features)
    masks, padding_mask = batch["mask"], batch["padding_mask"]
    pixels = scoring.upsample(jax.nn.softmax(patch_logits), masks.shape[-1])
    return {
      "image": losses.image_loss(image_logits, batch["label"], padding_mask),
      "patch": losses.patch_loss(
        pixels, masks.reshape(masks.shape[0], -1), 1, padding_mask
      ),
    }

  def score(
    self,
    features: tuple[Float[Array, "b d"], Float[Array, "b f n d"]],
    batch: Mapping[str, jax.Array],
  ) -> tuple[Float[Array, "b"], Float[Array, "b n"]]:
    """Returns scores of images and patches; see `methods.Model`."""
    return scoring.probabilities(
      *self(*features),
      batch.get("memory_distances"),
      self.config.evaluation.memory_share,
    )


def build_model(config: Any, tower: CLIP, backbone: Any) -> AnomalyCLIP:
  """Returns the model; see `methods.Method`."""
  tokens = backbone.tokens
  normal = (tokens.object, tokens.period, tokens.end)
  return AnomalyCLIP(
    config, tower, (tokens.start,), (normal, (*tokens.damaged, *normal))
  )
