"""Prototypes: explicit state tokens taken from an image's patches."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from cops_jax.typing import Array, Float

# Glorot-uniform over the stacked (3d, d) matrix of the three projections:
# limit sqrt(6 / (3d + d)), which is variance scaling of a (d, d) matrix by 1/2.
_stacked_glorot = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")
_normal = nn.initializers.normal(0.02)


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """CLIP's activation, x * sigmoid(1.702 x)."""
  return x * jax.nn.sigmoid(1.702 * x)


class PrototypeExtractor(nn.Module):
  """Prototypes of both states by cross-attention from learned queries.

  The explicit state token synthesis (ESTS) of CoPS section 3.2:
  `x = q + attention(ln_1(q), ln_1(patches))`, then
  `x + c_proj(quick_gelu(c_fc(ln_2(x))))`.

  Attributes:
    num_prototypes: per state.
    num_heads: of the attention; must divide the embedding width.
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

    ln_1 = _layer_norm("ln_1")
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

    hidden = _layer_norm("ln_2")(x)
    hidden = quick_gelu(
      nn.Dense(width, kernel_init=_normal, name="c_fc")(hidden)
    )
    x = x + nn.Dense(width, kernel_init=_normal, name="c_proj")(hidden)
    return x.reshape(batch, 2, self.num_prototypes, width)


def _layer_norm(name):
  return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=name)
