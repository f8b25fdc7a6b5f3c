"""Losses of the toy CLIP's pretraining.

A CLIP of this size learns nothing local from captions of whole images. Its
contrastive loss between images and captions is therefore combined with:

- a region-text loss between patches of the value path and texts of the patch's
  state (no defect, or a kind of defect) and attributes (colour, brightness,
  contrast, place);
- an image-text loss between the class token, as CoPS reads it, and texts of
  the image's state;
- losses of two linear heads on each patch's token, which are discarded later.
  One predicts whether the patch is defective, the other its difference from the
  same patch without the defect.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
import optax

from cops_jax.backbones.clip import CLIP
from cops_jax.backbones.vision import normalize_images
from cops_jax.scoring import normalize
from cops_jax.typing import Array, Bool, Float, Integer
from tools.pretrain_demo_clip.captions import ATTRIBUTES
from tools.pretrain_demo_clip.model import (
  NUM_LAYERS,
  NUM_VALUE_LAYERS,
  TEMPERATURE,
)
from tools.pretrain_demo_clip.patches import attribute_labels, patch_pixels

# A patch with at least this share of mask pixels is defective. Patches with a
# smaller share above 0 have no weight in the losses.
MIN_DEFECT_SHARE = 0.12
DEFECT_PATCH_WEIGHT = 6.0
# Weights of the terms in the total; by default 1.
TERM_WEIGHTS = {"contrastive": 0.3, "region_kind": 0.5, "attributes": 0.2}


def text_features(
  model: CLIP, ids: Integer[Array, "t l"]
) -> Float[Array, "t d"]:
  """Returns unit vectors of texts."""
  positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
  hidden = model.text_model(ids, jnp.ones_like(ids), positions)
  return normalize(model.text_projection(hidden[1]))


def image_features(
  model: CLIP, images: Float[Array, "b h w 3"]
) -> tuple[
  Float[Array, "b n c"],
  Float[Array, "b n d"],
  Float[Array, "b d"],
  Float[Array, "b d"],
]:
  """Returns the features of images from `normalize_images`.

  Returns:
    The last layer's patch tokens, and three arrays of unit vectors: patches of
    the value path, the image as CLIP pools it, and the class token as CoPS
    reads it.
  """
  (class_token, value_path), (_, original) = (
    model.vision_streams(
      images, feature_layers=(NUM_LAYERS,), num_value_layers=number
    )
    for number in (NUM_VALUE_LAYERS, 0)
  )
  tower, project = model.vision_model, model.visual_projection
  patches = normalize(project(tower.post_layernorm(value_path[:, 0, 1:])))
  pooled = normalize(project(tower.post_layernorm(class_token)))
  class_token = normalize(project(class_token))
  return original[:, 0, 1:], patches, pooled, class_token


def weighted_mean(
  values: Float[Array, "*any"], weight: Float[Array, "*any"]
) -> Float[Array, ""]:
  return (values * weight).sum() / weight.sum()


def cross_entropy(
  logits: Float[Array, "*any s"],
  labels: Integer[Array, "*any"],
  weight: Float[Array, "*any"],
) -> Float[Array, ""]:
  """Returns the weighted mean of softmax cross-entropies with the labels."""
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  return weighted_mean(losses, weight)


def contrastive_loss(
  images: Float[Array, "b d"],
  texts: Float[Array, "b d"],
  scale: Float[Array, ""],
  same_text: Bool[Array, "b b"],
) -> Float[Array, ""]:
  """Returns CLIP's contrastive loss, averaged over both directions.

  All texts of equal meaning are equally likely targets.
  """
  logits = scale * images @ texts.T
  target = same_text / same_text.sum(axis=1, keepdims=True)
  return (
    optax.softmax_cross_entropy(logits, target).mean()
    + optax.softmax_cross_entropy(logits.T, target).mean()
  ) / 2


def attribute_loss(
  patches: Float[Array, "b n d"],
  texts: Float[Array, "t d"],
  images: Integer[Array, "b h w 3"],
) -> Float[Array, ""]:
  """Returns the cross-entropies of patches and words, added over the groups.

  `patches` are unit vectors, and `texts` those of `captions.attribute_texts`.
  """
  sizes = np.cumsum([len(group) for group in ATTRIBUTES])[:-1]
  return sum(
    cross_entropy(
      patches @ words.T / TEMPERATURE, labels, jnp.ones(patches.shape[:2])
    )
    for words, labels in zip(
      jnp.split(texts, sizes), attribute_labels(images / 255.0), strict=True
    )
  )


def repair_loss(
  tokens: Float[Array, "b n c"],
  head: Float[Array, "c p"],
  images: Float[Array, "b h w 3"],
  weight: Float[Array, "b n"],
) -> Float[Array, ""]:
  """Returns the squared error of the predicted difference from normal images.

  `tokens` are the last layer's. The columns of `head` are the colours of a
  patch's pixels. `images` have the order of `batches.draw_batch`.
  """
  pixels = patch_pixels(images)
  normal_pixels = jnp.tile(pixels[: len(pixels) // 2], (2, 1, 1))
  error = tokens @ head - (normal_pixels - pixels)
  return weighted_mean((error**2).mean(axis=-1), weight)


def total_loss(
  model: CLIP, batch: Mapping[str, Array], heads: Mapping[str, Array]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """Returns the loss to minimize, and its unweighted terms by name.

  The model is bound to its parameters. `heads` are from `model.initial_heads`.
  """
  images = normalize_images(batch["image"], CLIP.image_mean, CLIP.image_std)
  tokens, patches, pooled, class_token = image_features(model, images)
  captions = text_features(model, batch["caption"])
  scale = jnp.exp(jnp.minimum(model.logit_scale, jnp.log(100.0)))
  contrastive = contrastive_loss(pooled, captions, scale, batch["same_text"])

  states = text_features(model, batch["state_text"])
  pair, kinds = states[:2], states[2:]
  share = batch["share"]
  is_bad = share >= MIN_DEFECT_SHARE
  weight = jnp.where(is_bad, DEFECT_PATCH_WEIGHT, (share == 0) * 1.0)
  kind_label = jnp.where(is_bad, 1 + batch["kind"][:, None], 0)
  region = cross_entropy(
    patches @ pair.T / TEMPERATURE, is_bad.astype(jnp.int32), weight
  )
  region_kind = cross_entropy(
    patches @ kinds.T / TEMPERATURE, kind_label, weight
  )
  label = batch["is_defective"].astype(jnp.int32)
  ones = jnp.ones_like(label, jnp.float32)
  image = cross_entropy(class_token @ pair.T / TEMPERATURE, label, ones)

  defective = weighted_mean(
    optax.sigmoid_binary_cross_entropy(
      tokens @ heads["defective"] + heads["bias"], is_bad * 1.0
    ),
    weight,
  )
  described = text_features(model, batch["attribute_text"])
  terms = dict(
    contrastive=contrastive,
    region=region,
    region_kind=region_kind,
    image=image,
    defective=defective,
    repair=repair_loss(tokens, heads["repair"], images, weight),
    attributes=attribute_loss(patches, described, batch["image"]),
  )
  total = sum(
    TERM_WEIGHTS.get(name, 1.0) * term for name, term in terms.items()
  )
  return total, terms
