"""AnomalyCLIP: two learned prompts that name no object, on a frozen CLIP.

Zhou et al., AnomalyCLIP: Object-agnostic Prompt Learning for Zero-shot Anomaly
Detection, ICLR 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cops_jax.models.clip import CLIP
from cops_jax.models.encoding import init_parts
from cops_jax.models.flax_clip import CLIPConfig
from cops_jax.models.similarity import normalize, text_logits
from cops_jax.typing import Array, Float

DEEP_PROMPT_CASTS = ("float16", "none")

_normal = nn.initializers.normal(0.02)


@jax.custom_vjp
def round_to_float16(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
  """Rounds values forward, and their gradient backward, to half precision."""
  # Two casts XLA would drop as excess precision, and `reduce_precision` alone
  # makes zeros of what is below half precision's normal range.
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


class ObjectPrompts(nn.Module):
  """The learned vectors of the prompts of both states.

  Attributes:
    width: of the text tower.
    num_context_words: learned words of each prompt.
    deep_prompt_length: tokens replaced in a deeper layer.
    deep_prompt_depth: deeper layers that get replaced tokens; with 0 there are
      no parameters for them.
  """

  width: int
  num_context_words: int
  deep_prompt_length: int
  deep_prompt_depth: int

  @nn.compact
  def __call__(
    self,
  ) -> tuple[Float[Array, "s=2 l d"], Float[Array, "depth t d"]]:
    """The words of each state, and the deep prompts that both share."""
    words = self.param(
      "context", _normal, (2, self.num_context_words, self.width)
    )
    shape = (self.deep_prompt_depth, self.deep_prompt_length, self.width)
    if not self.deep_prompt_depth * self.deep_prompt_length:
      return words, jnp.zeros(shape)
    return words, self.param("deep_prompts", _normal, shape)


class AnomalyCLIP(nn.Module):
  """Compares images with the two prompts; see `models.encoding`.

  Attributes:
    clip_config: sizes of CLIP.
    prefix_tokens: ids before the learned words.
    suffix_tokens: ids after them, for each state.
    feature_layers: 1-based vision layers whose patches are compared.
    num_value_layers: vision layers with a value path, counted from the last.
    deep_prompt_cast: "float16" takes each state's copy of the deep prompts
      through half precision, as the authors' code does; or "none".
    temperature: that cosines are divided by.
    dtype: of CLIP's computation; everything learned is float32.
    attention: see `CLIP`.
    The others: see `ObjectPrompts`.
  """

  clip_config: CLIPConfig
  prefix_tokens: tuple[int, ...]
  suffix_tokens: tuple[tuple[int, ...], tuple[int, ...]]
  feature_layers: tuple[int, ...]
  num_value_layers: int
  num_context_words: int
  deep_prompt_length: int
  deep_prompt_depth: int
  deep_prompt_cast: str
  temperature: float
  dtype: Any = jnp.float32
  attention: str = "auto"

  def setup(self):
    self.clip = CLIP(
      self.clip_config, dtype=self.dtype, attention=self.attention
    )
    self.object_prompts = ObjectPrompts(
      width=self.clip_config.text_config.hidden_size,
      num_context_words=self.num_context_words,
      deep_prompt_length=self.deep_prompt_length,
      deep_prompt_depth=self.deep_prompt_depth,
    )

  def text_features(self) -> Float[Array, "s=2 d"]:
    """Of the two prompts, L2-normalised."""
    words, deep_prompts = self.object_prompts()
    prefix = self.clip.embed_tokens(jnp.array(self.prefix_tokens))
    features = []
    # One by one: they differ in length, and each has its own copy of the deep
    # prompts, whose gradients are rounded before they are added.
    for state, tokens in enumerate(self.suffix_tokens):
      suffix = self.clip.embed_tokens(jnp.array(tokens))
      copy = deep_prompts
      if self.deep_prompt_cast == "float16":
        copy = round_to_float16(copy)
      features.append(
        self.clip.encode_prompts(
          [jnp.concatenate([prefix, words[state], suffix])[None]], copy
        )
      )
    return normalize(jnp.concatenate(features).astype(jnp.float32))

  def __call__(
    self,
    image_features: Float[Array, "b d"],
    patch_features: Float[Array, "b f n d"],
  ) -> tuple[Float[Array, "b s=2"], Float[Array, "b f n s=2"]]:
    """Cosines of images and patches with the prompts, over the temperature.

    Args:
      image_features, patch_features: from `encode_images`.

    Returns:
      Logits of the images, and of their patches for each feature layer; index 0
      of `s` is normal, 1 anomaly.
    """
    return compare(
      image_features, patch_features, self.text_features(), self.temperature
    )


def compare(
  image_features: Float[Array, "b d"],
  patch_features: Float[Array, "b f n d"],
  text_features: Float[Array, "*_b s=2 d"],
  temperature: float,
) -> tuple[Float[Array, "b s=2"], Float[Array, "b f n s=2"]]:
  """Logits of images and patches by texts, which all images may share.

  Args:
    image_features, patch_features: need not be normalised.
    text_features: L2-normalised; (b, 2, d) or, of all images, (2, d).
    temperature: that cosines are divided by.
  """
  text_features = jnp.broadcast_to(
    text_features, (image_features.shape[0], *text_features.shape[-2:])
  )
  return (
    text_logits(image_features, text_features, temperature),
    text_logits(patch_features, text_features, temperature),
  )


def init_trainable(model: AnomalyCLIP, key: jax.Array) -> Mapping[str, Any]:
  """Random trainable parameters, float32."""
  return init_parts(model, key, lambda model: model.object_prompts())
