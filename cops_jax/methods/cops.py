"""CoPS: prompts synthesised from each image, on a frozen CLIP.

Conditional Prompt Synthesis for Zero-Shot Anomaly Detection, arXiv 2508.03447,
CVPR 2026 Findings.

Each state, normal and anomaly, has a prompt of learned context, state and
category words, with deep prompts in the text tower. State words receive
prototypes that are extracted from the image's patches. Category words receive
biases that a VAE decodes from samples of its latent space. The image feature
and the patch features of the value path are compared with both text features.
In evaluation, patch scores are weighted by distances to the prototypes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cops_jax import losses, scoring
from cops_jax.backbones.clip import CLIP
from cops_jax.backbones.features import init_parts
from cops_jax.backbones.prompts import LearnedPrompts, join_parts
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
IS_TRAINED = USES_TEXT = True

_CODES_KEY = 2  # Combined with the seed; other purposes use other numbers.
# The states whose prototypes the prompts of (normal, anomaly) receive.
PROTOTYPE_INJECTIONS = {"crossed": (1, 0), "matched": (0, 1)}

_normal = nn.initializers.normal(0.02)
# Glorot-uniform over the stacked (3d, d) matrix of three projections has the
# limit sqrt(6 / (3d + d)), as has variance scaling of a (d, d) matrix by 1/2.
_stacked_glorot = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")


class PrototypeExtractor(nn.Module):
  """Extracts both states' prototypes from patches, with learned queries q.

  This is explicit state token synthesis (ESTS, CoPS section 3.2):
  `x = q + attention(ln_1(q), ln_1(patches))`, then
  `x + c_proj(quick_gelu(c_fc(ln_2(x))))`.

  Attributes:
    num_prototypes: number of prototypes of each state.
    num_heads: number of attention heads; divides the joint width.
  """

  num_prototypes: int
  num_heads: int

  @nn.compact
  def __call__(
    self, patches: Float[Array, "b n d"]
  ) -> Float[Array, "b s=2 k d"]:
    batch, _, width = patches.shape
    queries = self.param("queries", _normal, (2, self.num_prototypes, width))
    # Both states share keys and values, so one attention serves their queries.
    x = queries.reshape(1, -1, width)
    x = jnp.broadcast_to(x, (batch, *x.shape[1:]))

    layer_norm = functools.partial(nn.LayerNorm, 1e-5, use_fast_variance=False)
    ln_1 = layer_norm(name="ln_1")
    keys = ln_1(patches)

    def split_heads(name, inputs):
      hidden = nn.Dense(width, kernel_init=_stacked_glorot, name=name)(inputs)
      return hidden.reshape(batch, -1, self.num_heads, width // self.num_heads)

    attended = jax.nn.dot_product_attention(
      split_heads("query", ln_1(x)),
      split_heads("key", keys),
      split_heads("value", keys),
    ).reshape(batch, -1, width)
    x = x + nn.Dense(width, kernel_init=_normal, name="out")(attended)

    hidden = layer_norm(name="ln_2")(x)
    hidden = nn.Dense(width, kernel_init=_normal, name="c_fc")(hidden)
    hidden = hidden * jax.nn.sigmoid(1.702 * hidden)  # CLIP's quick_gelu.
    x = x + nn.Dense(width, kernel_init=_normal, name="c_proj")(hidden)
    return x.reshape(batch, 2, self.num_prototypes, width)


class CategoryVAE(nn.Module):
  """Encodes image features as codes and decodes codes to category biases.

  This is implicit category token sampling (ICTS, CoPS section 3.3). The encoder
  is linear, relu and two linear heads; the decoder is linear, relu, linear. All
  layers have the same width.
  """

  width: int

  def setup(self):
    dense = functools.partial(nn.Dense, self.width, kernel_init=_normal)
    self.encoder = dense()
    self.mean = dense()
    self.log_var = dense()
    self.decoder = dense()
    self.output = dense()

  def encode(
    self, image_features: Float[Array, "b d"]
  ) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
    """Returns mean and log-variance of the code's posterior."""
    hidden = nn.relu(self.encoder(image_features))
    return self.mean(hidden), self.log_var(hidden)

  def decode(self, codes: Float[Array, "*z d"]) -> Float[Array, "*z d"]:
    """Returns the biases that are added to the category words of prompts."""
    return self.output(nn.relu(self.decoder(codes)))


class Outputs(NamedTuple):
  """Outputs of the model for a batch; index 0 of `s` is normal, 1 is anomaly.

  Attributes:
    prototypes: prototypes of each state; None without state words.
    distances: see `scoring.prototype_distances`; None without state words.
    text_features: L2-normalised text features of the prompts.
    patch_probability: probabilities of the patches of each feature layer.
    image_logits: cosines of image and text features over the temperature.
    category_bias: biases decoded from the codes; None without category words.
    code_mean, code_log_var: the codes' posterior; None in evaluation and
      without category words.
  """

  prototypes: Float[Array, "b s=2 k d"] | None
  distances: Float[Array, "b s=2 n"] | None
  text_features: Float[Array, "_b s=2 d"]
  patch_probability: Float[Array, "b f n s=2"]
  image_logits: Float[Array, "b s=2"]
  category_bias: Float[Array, "_b z d"] | None
  code_mean: Float[Array, "b d"] | None = None
  code_log_var: Float[Array, "b d"] | None = None


class CoPS(nn.Module):
  """Conditional prompt synthesis on a frozen CLIP; see `methods.Model`.

  Without state words there is no prototype extractor; without category words
  there is no VAE. CLIP uses its own type; all learned parameters are float32.

  Attributes:
    config, backbone: see `methods.Model`.
    prefix_tokens, suffix_tokens: token ids before and after the learned words.
  """

  config: Any
  backbone: CLIP
  prefix_tokens: tuple[int, ...]
  suffix_tokens: tuple[int, ...]

  needs_masks = has_layer_tokens = False
  upsampling = "nearest"

  def setup(self):
    settings, width = self.config.model, self.backbone.feature_width
    num_words = settings.num_context_words
    if settings.num_state_words:
      self.prototype_extractor = PrototypeExtractor(
        settings.num_state_words, settings.num_heads
      )
      num_words += settings.num_state_words
    if settings.num_category_words:
      self.category_vae = CategoryVAE(width)
      num_words += settings.num_category_words
    self.prompt_learner = LearnedPrompts(settings, width, num_words)

  @property
  def needs_noise(self) -> bool:
    """True if the losses read noise; see `methods.Model`."""
    return self.config.model.num_category_words > 0

  @nn.nowrap
  def num_prompt_tokens(self, *, is_training: bool) -> float:
    """Returns the number of text tokens that are computed per image.

    Both states' prompts count. In evaluation, tokens from the category words on
    count once for each code.
    """
    settings = self.config.model
    suffix = settings.num_category_words + 2
    num_tokens = 1 + settings.num_context_words + settings.num_state_words
    if self.needs_noise and not is_training:
      suffix *= self.config.evaluation.num_samples
    return float(2 * (num_tokens + suffix))

  @nn.nowrap
  def evaluation_codes(self) -> Float[Array, "z d"]:
    """Returns the category codes of evaluation, which all images share."""
    shape = self.config.evaluation.num_samples, self.backbone.feature_width
    # NumPy draws the same numbers on every platform, to the last bit.
    rng = np.random.default_rng((self.config.seed, _CODES_KEY))
    return jnp.array(rng.standard_normal(shape, np.float32))

  @nn.nowrap
  def init_trainable(
    self, key: jax.Array, backbone_params: Mapping[str, Any] | None = None
  ) -> Mapping[str, Any]:
    """Returns random trainable parameters, float32."""
    return init_parts(self, key, CoPS._use_trained_parts)

  def _use_trained_parts(self):
    features = jnp.zeros((1, self.backbone.feature_width))
    if self.config.model.num_state_words:
      self.prototype_extractor(features[None])
    if self.config.model.num_category_words:
      self.category_vae.encode(features)
      self.category_vae.decode(features)
    self.prompt_learner()

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
      image_features, patch_features: result of `features.encode_images`.
      noise: standard normal noise. In training it samples the codes from their
        posterior; in evaluation it replaces `evaluation_codes`. Without
        category words it is not read.
      is_training: True in training, False in evaluation.
    """
    settings = self.config.model
    patch_features = scoring.smooth_patches(
      patch_features, settings.smoothing_window_patches
    )
    fused = patch_features.mean(axis=1)
    prototypes = distances = None
    if settings.num_state_words:
      prototypes = self.prototype_extractor(fused)
      distances = scoring.prototype_distances(fused, prototypes)

    category_bias = mean = log_var = None
    if settings.num_category_words:
      if is_training:
        mean, log_var = self.category_vae.encode(image_features)
        codes = mean[:, None] + jnp.exp(log_var / 2)[:, None] * noise
      else:
        codes = self.evaluation_codes()[None] if noise is None else noise
      category_bias = self.category_vae.decode(codes)

    prompts, deep_prompts = self.synthesise_prompts(prototypes, category_bias)
    if is_training:
      # A shared part would receive gradients from all images, which would be
      # summed over the devices in every layer.
      prompts = [join_parts(prompts)]
    texts = self.backbone.encode_prompts(prompts, deep_prompts)  # b s z d
    texts = scoring.normalize(texts.astype(jnp.float32))
    text_features = scoring.normalize(texts.mean(axis=2))
    image_logits, patch_logits = scoring.text_logits(
      image_features, patch_features, text_features, settings.temperature
    )
    return Outputs(
      prototypes=prototypes,
      distances=distances,
      text_features=text_features,
      patch_probability=jax.nn.softmax(patch_logits),
      image_logits=image_logits,
      category_bias=category_bias,
      code_mean=mean,
      code_log_var=log_var,
    )

  def synthesise_prompts(
    self,
    prototypes: Float[Array, "b s=2 k d"] | None,
    category_bias: Float[Array, "_b z d"] | None,
  ) -> tuple[
    tuple[Float[Array, "_b s=2 _z _l d"], ...], Float[Array, "depth t d"]
  ]:
    """Assembles the token embeddings of prompts, without positions.

    Args:
      prototypes: one prototype for each state word; None without state words.
        They are detached, so text features do not train the extractor.
      category_bias: bias of every category word; None without category words.

    Returns:
      The parts for `CLIP.encode_prompts`, and the deep prompts. Words that all
      images, or all codes of an image, share occur once. The last part has
      shape (b, s, z, l, d): z is 1 without category words, b is 1 without both.
    """
    settings = self.config.model
    words, deep_prompts = self.prompt_learner()
    end = settings.num_context_words + settings.num_state_words
    context, state, category = jnp.split(
      words, (settings.num_context_words, end), axis=1
    )  # Each is (s, words, d).
    prefix, suffix = (
      self.backbone.embed_tokens(jnp.array(tokens))[None, None, None]
      for tokens in (self.prefix_tokens, self.suffix_tokens)
    )
    # Each array broadcasts to (b, s, z, words, d).
    words = [prefix, context[None, :, None]]
    if prototypes is not None:
      order = PROTOTYPE_INJECTIONS[settings.prototype_injection]
      injected = jax.lax.stop_gradient(prototypes)[:, order, :, :]
      words.append((state[None] + injected)[:, :, None])
    if category_bias is not None:
      words.append(category[None, :, None] + category_bias[:, None, :, None])
    words.append(suffix)
    shape, parts = (1, 2, 1), []
    for array in words:
      wider = jnp.broadcast_shapes(shape, array.shape[:3])
      if wider != shape or not parts:
        parts.append([])
      shape = wider
      parts[-1].append(jnp.broadcast_to(array, shape + array.shape[3:]))
    return tuple(jnp.concatenate(part, axis=3) for part in parts), deep_prompts

  def loss_terms(
    self,
    features: tuple[Float[Array, "b d"], Float[Array, "b f n d"]],
    batch: Mapping[str, jax.Array],
  ) -> dict[str, jax.Array]:
    """Returns the terms of the loss; see `methods.Model`."""
    outputs = self(*features, batch.get("noise"), is_training=True)
    padding_mask, counts = batch["padding_mask"], batch["mask_counts"]
    patch_area = self.config.model.image_size_pixels**2 // counts.shape[1]
    terms = {
      "image": losses.image_loss(
        outputs.image_logits, batch["label"], padding_mask
      ),
      "patch": losses.patch_loss(
        outputs.patch_probability, counts, patch_area, padding_mask
      ),
    }
    if outputs.distances is not None:
      arguments = (outputs.distances, counts, padding_mask)
      terms["gather"] = losses.gather_loss(*arguments)
      terms["scatter"] = losses.scatter_loss(*arguments)
    if outputs.category_bias is not None:
      terms["kl"] = losses.kl_loss(
        outputs.code_mean, outputs.code_log_var, padding_mask
      )
      terms["reconstruction"] = losses.reconstruction_loss(
        features[0],
        outputs.category_bias[:, 0],
        padding_mask,
        self.config.train.reconstruction,
      )
    return terms

  def score(
    self,
    features: tuple[Float[Array, "b d"], Float[Array, "b f n d"]],
    batch: Mapping[str, jax.Array],
  ) -> tuple[Float[Array, "b"], Float[Array, "b n"]]:
    """Returns scores of images and patches; see `methods.Model`."""
    settings = self.config.evaluation
    outputs = self(*features, batch.get("noise"), is_training=False)
    patch_scores = scoring.weighted_patch_scores(
      outputs.patch_probability,
      outputs.distances if settings.distance_weighting else None,
      settings.alpha,
    )
    patch_scores = scoring.fuse(
      patch_scores, batch.get("memory_distances"), settings.memory_share
    )
    image_scores = scoring.image_scores(
      outputs.image_logits, patch_scores, settings.beta
    )
    return image_scores, patch_scores


def build_model(config: Any, tower: CLIP, backbone: Any) -> CoPS:
  """Returns the model; see `methods.Method`."""
  suffix = (backbone.tokens.period, backbone.tokens.end)
  if not config.model.num_category_words:
    suffix = (backbone.tokens.object, *suffix)
  return CoPS(config, tower, (backbone.tokens.start,), suffix)
