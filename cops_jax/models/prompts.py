"""Learned prompts: context, state and category words, and deep prompts."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from cops_jax.typing import Array, Float

_normal = nn.initializers.normal(0.02)

# Which state's prototypes the prompts of (normal, anomaly) receive.
PROTOTYPE_INJECTIONS = {"crossed": (1, 0), "matched": (0, 1)}


class PromptLearner(nn.Module):
  """One learned prompt for each state, conditioned on the image.

  Attributes:
    width: of the text tower.
    num_context_words, num_state_words, num_category_words: learned words, in
      this order between the start token and the full stop.
    deep_prompt_length: tokens replaced in a deeper layer.
    deep_prompt_depth: deeper layers that get replaced tokens; with 0 there are
      no parameters for them.
    prototype_injection: "crossed" adds the anomaly prototypes to the normal
      prompt and the other way round, as the authors' released code does;
      "matched" adds each state's own, as the paper describes.
  """

  width: int
  num_context_words: int
  num_state_words: int
  num_category_words: int
  deep_prompt_length: int
  deep_prompt_depth: int
  prototype_injection: str

  def setup(self):
    num_words = (
      self.num_context_words + self.num_state_words + self.num_category_words
    )
    self.context = self.param("context", _normal, (2, num_words, self.width))
    shape = (self.deep_prompt_depth, self.deep_prompt_length, self.width)
    self.deep_prompts = (
      self.param("deep_prompts", _normal, shape)
      if self.deep_prompt_depth * self.deep_prompt_length
      else jnp.zeros(shape)
    )

  def __call__(
    self,
    prototypes: Float[Array, "b s=2 k d"] | None,
    category_bias: Float[Array, "b z d"] | None,
    prefix: Float[Array, "p d"],
    suffix: Float[Array, "q d"],
  ) -> tuple[
    tuple[Float[Array, "_b s=2 _z _l d"], ...], Float[Array, "depth t d"]
  ]:
    """Assembles the prompts' embeddings, without positions.

    Args:
      prototypes: as many per state as there are state words. Detached here: the
        text features do not train the extractor. None without state words.
      category_bias: added to every category word; None without any.
      prefix: embeddings of the tokens before the learned words (start).
      suffix: embeddings of the tokens after them (full stop, end).

    Returns:
      The embeddings, in parts as `CLIP.encode_prompts` takes them, and the deep
      prompts. Words that are the same for all images, or for all codes of an
      image, are there once. The last part is of shape (b, s, z, l, d); without
      category words z is 1, and without state words too, b is.
    """
    context, state, category = jnp.split(
      self.context,
      (self.num_context_words, self.num_context_words + self.num_state_words),
      axis=1,
    )  # each: s words d
    # Each broadcasts to b s z words d.
    words = [prefix[None, None, None], context[None, :, None]]
    if prototypes is not None:
      injected = jax.lax.stop_gradient(prototypes)[
        :, PROTOTYPE_INJECTIONS[self.prototype_injection], :, :
      ]
      words.append((state[None] + injected)[:, :, None])
    if category_bias is not None:
      words.append(category[None, :, None] + category_bias[:, None, :, None])
    words.append(suffix[None, None, None])
    shape, parts = (1, 2, 1), []
    for array in words:
      wider = jnp.broadcast_shapes(shape, array.shape[:3])
      if wider != shape or not parts:
        parts.append([])
      shape = wider
      parts[-1].append(jnp.broadcast_to(array, shape + array.shape[3:]))
    return tuple(
      jnp.concatenate(part, axis=3) for part in parts
    ), self.deep_prompts


def join_parts(
  parts: Sequence[Float[Array, "... _l d"]],
) -> Float[Array, "... _l d"]:
  """Consecutive parts of prompts as one, for as many prompts as the last."""
  shape = parts[-1].shape[:-2]
  return jnp.concatenate(
    [jnp.broadcast_to(part, shape + part.shape[-2:]) for part in parts], axis=-2
  )
