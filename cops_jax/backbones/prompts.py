"""Learned prompts: embeddings that take the place of words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from cops_jax.typing import Array, Float

_normal = nn.initializers.normal(0.02)


class LearnedPrompts(nn.Module):
  """Learned words of one prompt for each state, and their deep prompts.

  Attributes:
    settings: config.model; its deep_prompt_depth and deep_prompt_length are the
      number of deeper layers with replaced tokens and of tokens in each. If
      either is 0 there are no parameters for them.
    width: text tower's width.
    num_words: learned words of each prompt.
  """

  settings: Any
  width: int
  num_words: int

  @nn.compact
  def __call__(
    self,
  ) -> tuple[Float[Array, "s=2 l d"], Float[Array, "depth t d"]]:
    """Returns each state's words, and the deep prompts that both share."""
    words = self.param("context", _normal, (2, self.num_words, self.width))
    depth = self.settings.deep_prompt_depth
    shape = (depth, self.settings.deep_prompt_length, self.width)
    if 0 in shape:
      return words, jnp.zeros(shape)
    return words, self.param("deep_prompts", _normal, shape)


def join_parts(
  parts: Sequence[Float[Array, "... _l d"]],
) -> Float[Array, "... _l d"]:
  """Joins consecutive parts of prompts, for as many prompts as the last."""
  shape = parts[-1].shape[:-2]
  return jnp.concatenate(
    [jnp.broadcast_to(part, shape + part.shape[-2:]) for part in parts], axis=-2
  )
