"""What every method has in common: frozen CLIP's features of images.

A method's model is a Flax module that has CLIP as its submodule `clip` and
says, as attributes, which of CLIP's features it wants: `feature_layers` and
`num_value_layers`. Its parameters are two trees: CLIP's under "clip", frozen,
and the rest, trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cops_jax.models.clip import normalize_images
from cops_jax.models.devices import one_by_one_on_cpu
from cops_jax.typing import Array, Float

CLIP_PARAMS = "clip"  # The frozen subtree's name beside the trainable ones.

# Fields of a batch that `encode_batch` reads: the first or the others.
ENCODE_FIELDS = ("image", "image_features", "patch_features")


def encode_images(
  model: nn.Module, images: Float[Array, "b h w 3"]
) -> tuple[Float[Array, "b d"], Float[Array, "b f n d"]]:
  """CLIP's image and patch features, float32; see `CLIP.encode_images`.

  Args:
    model: bound to its variables, as by `model.apply(variables, images,
      method=encode_images)`; of its parameters CLIP's alone are needed.
    images: normalised.
  """
  image_features, patch_features = model.clip.encode_images(
    images,
    feature_layers=model.feature_layers,
    num_value_layers=model.num_value_layers,
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
  """`encode_images`'s features of a batch.

  Args:
    model, variables: a method's; of its parameters CLIP's alone are needed.
    batch: image uint8 (b, h, w, 3); or, computed before, image_features (b, d)
      and patch_features (b, f, n, d) in any floating-point type.

  Returns:
    image_features (b, d) and patch_features (b, f, n, d), float32.
  """
  if "image" in batch:

    def encode(images):
      return model.apply(
        variables, normalize_images(images), method=encode_images
      )

    if model.attention == "auto":  # Each platform computes in its own way.
      encode = one_by_one_on_cpu(encode)
    return encode(batch["image"])
  return (
    batch["image_features"].astype(jnp.float32),
    batch["patch_features"].astype(jnp.float32),
  )


def join_params(
  trainable: Mapping[str, Any], clip: Mapping[str, Any]
) -> Mapping[str, Any]:
  """The variables of a method's model from its two parameter trees."""
  return {"params": {**trainable, CLIP_PARAMS: clip}}


def init_parts(
  model: nn.Module, key: jax.Array, use_parts: Callable[[nn.Module], None]
) -> Mapping[str, Any]:
  """Random parameters, float32, of what a function calls of a model.

  Args:
    model: a method's.
    key: of the random numbers.
    use_parts: calls, of the bound model, what has trained parameters, and CLIP,
      which takes long, not.
  """

  @jax.jit  # Compiled, values that the parameters do not need are not computed.
  def init():
    return model.init(key, method=use_parts)["params"]

  return init()
