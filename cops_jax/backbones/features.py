"""Features of images from a frozen backbone, for the models of all methods.

A model (`methods.Model`) contains the backbone as a submodule, and its config
names the features that it needs. Its parameters are two trees: the frozen one
of the backbone, under "backbone", and the trained one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cops_jax.backbones.devices import one_by_one
from cops_jax.backbones.vision import normalize_images
from cops_jax.typing import Array, Float

# Name of the frozen tree among a model's parameters.
BACKBONE_PARAMS = "backbone"

# Fields of a batch that `encode_batch` reads: the image, or cached features.
ENCODE_FIELDS = ("image", "image_features", "patch_features")


def encode_images(
  model: nn.Module,
  backbone_params: Mapping[str, Any],
  images: Float[Array, "b h w 3"],
) -> tuple[Float[Array, "b *f d"], Float[Array, "b f n d"]]:
  """Returns the backbone's image and patch features, float32.

  Args:
    model: model of a method; it need not be bound to variables.
    backbone_params: parameters of the backbone.
    images: images normalised for the backbone.

  Returns:
    Image features, and patch features of each feature layer. The image features
    are the class tokens of each feature layer or, for a method that compares
    images with texts, CLIP's image features (b, d).
  """
  settings, variables = model.config.model, {"params": backbone_params}
  if model.has_layer_tokens:
    features = model.backbone.apply(
      variables, images, settings.feature_layers, method="encode_layers"
    )
  else:
    features = model.backbone.apply(
      variables,
      images,
      feature_layers=settings.feature_layers,
      num_value_layers=settings.num_value_layers,
      method="encode_images",
    )
  # The barrier makes the tower's numbers independent of the program around it.
  image_features, patch_features = jax.lax.optimization_barrier(features)
  return (
    image_features.astype(jnp.float32),
    patch_features.astype(jnp.float32),
  )


def encode_batch(
  model: nn.Module,
  backbone_params: Mapping[str, Any],
  batch: Mapping[str, Array],
) -> tuple[Float[Array, "b *f d"], Float[Array, "b f n d"]]:
  """Returns `encode_images` of a batch, or the features that it contains.

  Args:
    model, backbone_params: see `encode_images`.
    batch: either image, uint8 (b, h, w, 3), or image_features and
      patch_features as `encode_images` returns them, in any float type.
  """
  if "image" in batch:
    backbone = model.backbone

    def encode(images):
      images = normalize_images(images, backbone.image_mean, backbone.image_std)
      return encode_images(model, backbone_params, images)

    if (backbone.attention, backbone.implementation) == ("auto", "heads"):
      encode = one_by_one(encode)  # On a CPU, this saves memory.
    return encode(batch["image"])
  return (
    batch["image_features"].astype(jnp.float32),
    batch["patch_features"].astype(jnp.float32),
  )


def join_params(
  trainable: Mapping[str, Any], backbone: Mapping[str, Any]
) -> Mapping[str, Any]:
  """Returns a model's variables from its two parameter trees."""
  return {"params": {**trainable, BACKBONE_PARAMS: backbone}}


def init_parts(
  model: nn.Module, key: jax.Array, use_parts: Callable[[nn.Module], None]
) -> Mapping[str, Any]:
  """Returns random parameters of a method's trained parts, float32.

  `use_parts` calls the trained parts of the bound model, but not the backbone,
  which is slow.
  """

  @jax.jit  # Under jit, values that no parameter needs are not computed.
  def init():
    return model.init(key, method=use_parts)["params"]

  return init()
