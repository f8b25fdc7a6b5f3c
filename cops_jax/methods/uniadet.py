"""UniADet: a few learned vectors on a frozen vision model, without text.

One Language-Free Foundation Model Is Enough for Universal Vision Anomaly
Detection, arXiv 2601.05552, 2026.

Each feature layer has two vectors (normal, anomaly) that classify the image by
its class token, and two more that segment it by its patch tokens. Their
probabilities are the softmax of `cosine / temperature`. Nothing else is
learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cops_jax import losses, scoring
from cops_jax.backbones.features import init_parts
from cops_jax.scoring import ANOMALY
from cops_jax.typing import Array, Float

TITLE = "UniADet"
FIELDS = ("backbone.clip_projection", "evaluation.beta")
IS_TRAINED, USES_TEXT = True, False


class LayerWeights(nn.Module):
  """One normal and one anomaly vector for each feature layer.

  Attributes:
    layers: numbers of the layers; they name the parameters.
    width: width of the vectors.
  """

  layers: Sequence[int]
  width: int

  @nn.compact
  def __call__(self) -> Float[Array, "f s=2 d"]:
    normal = nn.initializers.normal(0.02)
    return jnp.stack(
      [
        self.param(f"layer_{number}", normal, (2, self.width))
        for number in self.layers
      ]
    )


class UniADet(nn.Module):
  """Compares each layer's tokens with its vectors; see `methods.Model`.

  Attributes:
    config, backbone: see `methods.Model`.
  """

  config: Any
  backbone: nn.Module

  needs_masks = has_layer_tokens = True
  needs_noise = False
  upsampling = "bilinear"

  def setup(self):
    layers = self.config.model.feature_layers
    self.image_weights = LayerWeights(layers, self.backbone.feature_width)
    self.patch_weights = LayerWeights(layers, self.backbone.feature_width)

  @nn.nowrap
  def num_prompt_tokens(self, *, is_training: bool) -> float:
    """Returns 0, because there is no text."""
    return 0.0

  @nn.nowrap
  def init_trainable(
    self, key: jax.Array, backbone_params: Mapping[str, Any] | None = None
  ) -> Mapping[str, Any]:
    """Returns random trainable parameters, float32."""
    return init_parts(
      self, key, lambda model: (model.image_weights(), model.patch_weights())
    )

  def __call__(
    self,
    class_tokens: Float[Array, "b f d"],
    patch_tokens: Float[Array, "b f n d"],
  ) -> tuple[Float[Array, "b f s=2"], Float[Array, "b f n s=2"]]:
    """Returns image and patch logits, `cosine / temperature`, of each layer."""
    return tuple(
      jnp.einsum(
        "bf...d,fsd->bf...s",
        scoring.normalize(tokens),
        scoring.normalize(weights()),
      )
      / self.config.model.temperature
      for tokens, weights in (
        (class_tokens, self.image_weights),
        (patch_tokens, self.patch_weights),
      )
    )

  def loss_terms(
    self,
    features: tuple[Float[Array, "b f d"], Float[Array, "b f n d"]],
    batch: Mapping[str, jax.Array],
  ) -> dict[str, jax.Array]:
    """Returns the terms of the loss; see `methods.Model`.

    Both terms are means over layers. The patch loss compares each pixel's
    probability with the mask.
    """
    image_logits, patch_logits = self(*features)
    masks, padding_mask = batch["mask"], batch["padding_mask"]
    pixels = scoring.upsample(jax.nn.softmax(patch_logits), masks.shape[-1])
    patch_loss = losses.patch_loss(
      pixels, masks.reshape(masks.shape[0], -1), 1, padding_mask
    )
    image_loss = jax.vmap(losses.image_loss, in_axes=(1, None, None))
    return {
      "image": image_loss(image_logits, batch["label"], padding_mask).mean(),
      "patch": patch_loss / patch_logits.shape[1],
    }

  def score(
    self,
    features: tuple[Float[Array, "b f d"], Float[Array, "b f n d"]],
    batch: Mapping[str, jax.Array],
  ) -> tuple[Float[Array, "b"], Float[Array, "b n"]]:
    """Returns scores of images and patches; see `methods.Model`.

    The image score is the mean over layers of `beta * image probability +
    (1 - beta) * largest patch probability`. With reference images it is `beta *
    mean image probability + (1 - beta) * largest fused patch score`.
    """
    beta = self.config.evaluation.beta
    image, patches = (
      jax.nn.softmax(logits)[..., ANOMALY] for logits in self(*features)
    )
    largest, patches = patches.max(axis=-1), patches.mean(axis=1)
    if "memory_distances" in batch:
      share = self.config.evaluation.memory_share
      patches = scoring.fuse(patches, batch["memory_distances"], share)
      largest = patches.max(axis=-1, keepdims=True)
    image_scores = (beta * image + (1 - beta) * largest).mean(axis=1)
    return image_scores, patches


def build_model(config: Any, tower: nn.Module, backbone: Any) -> UniADet:
  """Returns the model; see `methods.Method`."""
  return UniADet(config, tower)
