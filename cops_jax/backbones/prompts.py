"""Learned prompts: embeddings in place of words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from cops_jax.typing import Array, Float

_normal = nn.initializers.normal(0.02)


class LearnedPrompts(nn.Module):
  """Learned words of one prompt per state, and the deep prompts of both.

  Attributes:
    settings: config.model. Its deep_prompt_depth is the number of layers with
      deep prompts, and its deep_prompt_length the number of tokens that each
      replaces. If either is 0, there are no deep prompts.
    width: width of the text tower.
    num_words: number of learned words in each prompt.
  """

  settings: Any
  width: int
  num_words: int

  @nn.compact
  def __call__(
    self,
  ) -> tuple[Float[Array, "s=2 l d"], Float[Array, "depth t d"]]:
    """Returns each state's words, and the deep prompts of both states."""
    words = self.param("context", _normal, (2, self.num_words, self.width))
    depth = self.settings.deep_prompt_depth
    shape = (depth, self.settings.deep_prompt_length, self.width)
    if 0 in shape:
      return words, jnp.zeros(shape)
    return words, self.param("deep_prompts", _normal, shape)


def join_parts(
  parts: Sequence[Float[Array, "... _l d"]],
) -> Float[Array, "... _l d"]:
  """Joins consecutive parts of prompts, broadcast to the last part."""
  shape = parts[-1].shape[:-2]
  return jnp.concatenate(
    [jnp.broadcast_to(part, shape + part.shape[-2:]) for part in parts], axis=-2
  )
