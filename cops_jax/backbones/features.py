"""A frozen backbone's features of images, for the model of any method.

A model (`methods.Model`) has a frozen submodule `backbone`; its config says
which features it needs. Its parameters are two trees: the backbone's under
"backbone", frozen, and the rest, trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cops_jax.backbones.clip import normalize_images
from cops_jax.backbones.devices import one_by_one
from cops_jax.typing import Array, Float

# The frozen subtree's name beside the trainable ones.
BACKBONE_PARAMS = "backbone"

# Fields of a batch that `encode_batch` reads: the first or the others.
ENCODE_FIELDS = ("image", "image_features", "patch_features")


def encode_images(
  model: nn.Module, images: Float[Array, "b h w 3"]
) -> tuple[Float[Array, "b d"], Float[Array, "b f n d"]]:
  """Returns the backbone's image and patch features, float32.

  Args:
    model: bound to variables, as by `model.apply(variables, images,
      method=encode_images)`; only the backbone's parameters are needed.
    images: normalised.
  """
  settings = model.config.model
  image_features, patch_features = model.backbone.encode_images(
    images,
    feature_layers=settings.feature_layers,
    num_value_layers=settings.num_value_layers,
  )
  # The tower gives the same numbers, in its own type, whatever is compiled
  # around it.
  image_features, patch_features = jax.lax.optimization_barrier(
    (image_features, patch_features)
  )
  return (
    image_features.astype(jnp.float32),
    patch_features.astype(jnp.float32),
  )


def encode_batch(
  model: nn.Module, variables: Mapping[str, Any], batch: Mapping[str, Array]
) -> tuple[Float[Array, "b d"], Float[Array, "b f n d"]]:
  """Returns `encode_images` of a batch, or the features that the batch holds.

  Args:
    model, variables: a method's; only the backbone's parameters are needed.
    batch: image uint8 (b, h, w, 3); or image_features (b, d) and patch_features
      (b, f, n, d) in any floating-point type.

  Returns:
    image_features (b, d) and patch_features (b, f, n, d), float32.
  """
  if "image" in batch:

    def encode(images):
      return model.apply(
        variables, normalize_images(images), method=encode_images
      )

    if (model.backbone.attention, model.backbone.implementation) == (
      "auto",
      "heads",
    ):
      encode = one_by_one(encode)  # On CPU.
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
  """Returns random parameters, float32, of a method's trained parts.

  `use_parts` calls these parts of the bound model, but not the backbone, which
  is slow.
  """

  @jax.jit  # Compiled, values that the parameters do not need are not computed.
  def init():
    return model.init(key, method=use_parts)["params"]

  return init()
