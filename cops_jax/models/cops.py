"""The whole CoPS model: frozen CLIP and the trained prompt synthesis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cops_jax.models.clip import CLIP
from cops_jax.models.encoding import init_parts
from cops_jax.models.flax_clip import CLIPConfig
from cops_jax.models.prompts import PromptLearner, join_parts
from cops_jax.models.prototypes import PrototypeExtractor
from cops_jax.models.similarity import (
  normalize,
  prototype_distances,
  smooth_patches,
  text_logits,
)
from cops_jax.models.vae import CategoryVAE
from cops_jax.typing import Array, Float


class Outputs(NamedTuple):
  """What the model computes from a batch; index 0 of `s` is normal, 1 anomaly.

  Attributes:
    prototypes: for each state; None without state words.
    distances: cosine distance of each patch to its nearest prototype; None
      without state words.
    text_features: L2-normalised.
    patch_probability: for each feature layer.
    image_logits: cosine over temperature.
    category_bias: decoded from the sampled codes; None without category words.
    code_mean, code_log_var: the codes' posterior; None in evaluation and
      without category words.
  """

  prototypes: Float[Array, "b s=2 k d"] | None
  distances: Float[Array, "b s=2 n"] | None
  text_features: Float[Array, "b s=2 d"]
  patch_probability: Float[Array, "b f n s=2"]
  image_logits: Float[Array, "b s=2"]
  category_bias: Float[Array, "b z d"] | None
  code_mean: Float[Array, "b d"] | None = None
  code_log_var: Float[Array, "b d"] | None = None


class CoPS(nn.Module):
  """Conditional prompt synthesis on a frozen CLIP.

  See `models.encoding`. Without state words there is no prototype extractor,
  without category words no VAE.

  Attributes:
    clip_config: sizes of CLIP.
    prefix_tokens, suffix_tokens: ids before and after the learned words.
    feature_layers: 1-based vision layers whose patches are compared.
    num_value_layers: vision layers with a value path, counted from the last.
    smoothing_window: side of the neighbourhood average, in patches; odd.
    num_heads: of the prototype extractor; divides the joint width.
    dtype: of CLIP's computation; everything learned is float32.
    attention: see `CLIP`.
    The others: see `PromptLearner`.
  """

  clip_config: CLIPConfig
  prefix_tokens: tuple[int, ...]
  suffix_tokens: tuple[int, ...]
  feature_layers: tuple[int, ...]
  num_value_layers: int
  smoothing_window: int
  num_heads: int
  num_context_words: int
  num_state_words: int
  num_category_words: int
  deep_prompt_length: int
  deep_prompt_depth: int
  prototype_injection: str
  temperature: float
  dtype: Any = jnp.float32
  attention: str = "auto"

  def setup(self):
    width = self.clip_config.projection_dim
    self.clip = CLIP(
      self.clip_config, dtype=self.dtype, attention=self.attention
    )
    if self.num_state_words:
      self.prototype_extractor = PrototypeExtractor(
        num_prototypes=self.num_state_words, num_heads=self.num_heads
      )
    if self.num_category_words:
      self.category_vae = CategoryVAE(width)
    self.prompt_learner = PromptLearner(
      width=width,
      num_context_words=self.num_context_words,
      num_state_words=self.num_state_words,
      num_category_words=self.num_category_words,
      deep_prompt_length=self.deep_prompt_length,
      deep_prompt_depth=self.deep_prompt_depth,
      prototype_injection=self.prototype_injection,
    )

  def __call__(
    self,
    image_features: Float[Array, "b d"],
    patch_features: Float[Array, "b f n d"],
    noise: Float[Array, "b z d"] | None,
    *,
    is_training: bool,
  ) -> Outputs:
    """Synthesises each image's prompts and compares the image with them.

    Args:
      image_features, patch_features: from `encode_images`.
      noise: standard normal. In training it perturbs the posterior's mean; in
        evaluation it is the code itself, drawn from the prior. None without
        category words.
      is_training: which of the two.
    """
    patch_features = smooth_patches(patch_features, self.smoothing_window)
    fused = patch_features.mean(axis=1)
    prototypes = distances = None
    if self.num_state_words:
      prototypes = self.prototype_extractor(fused)
      distances = prototype_distances(fused, prototypes)

    category_bias = mean = log_var = None
    if self.num_category_words:
      codes = noise
      if is_training:
        mean, log_var = self.category_vae.encode(image_features)
        codes = mean[:, None] + jnp.exp(log_var / 2)[:, None] * noise
      category_bias = self.category_vae.decode(codes)

    prompts, deep_prompts = self.prompt_learner(
      prototypes,
      category_bias,
      self.clip.embed_tokens(jnp.array(self.prefix_tokens)),
      self.clip.embed_tokens(jnp.array(self.suffix_tokens)),
    )
    if is_training:
      # What prompts share would get a gradient from all of them, to be summed
      # over the devices in every layer.
      prompts = [join_parts(prompts)]
    text_features = self.clip.encode_prompts(prompts, deep_prompts)  # b s z d
    text_features = normalize(
      normalize(text_features.astype(jnp.float32)).mean(axis=2)
    )
    # Prompts with neither kind of conditional words are the same for all.
    text_features = jnp.broadcast_to(
      text_features, (image_features.shape[0], *text_features.shape[1:])
    )

    return Outputs(
      prototypes=prototypes,
      distances=distances,
      text_features=text_features,
      patch_probability=jax.nn.softmax(
        text_logits(patch_features, text_features, self.temperature)
      ),
      image_logits=text_logits(image_features, text_features, self.temperature),
      category_bias=category_bias,
      code_mean=mean,
      code_log_var=log_var,
    )


def init_trainable(model: CoPS, key: jax.Array) -> Mapping[str, Any]:
  """Random trainable parameters, float32."""
  return init_parts(model, key, _use_trained_parts)


def _use_trained_parts(model):
  features = jnp.zeros((1, model.clip_config.projection_dim))
  prototypes = category_bias = None
  if model.num_state_words:
    prototypes = model.prototype_extractor(features[None])
  if model.num_category_words:
    model.category_vae.encode(features)
    category_bias = model.category_vae.decode(features[None])
  model.prompt_learner(prototypes, category_bias, features, features)
