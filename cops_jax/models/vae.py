"""Category tokens: implicit sampling with a variational auto-encoder."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from cops_jax.typing import Array, Float, Integer


class CategoryVAE(nn.Module):
  """Encodes image features, decodes category biases.

  The implicit category token sampling (ICTS) of CoPS section 3.3. The encoder
  is linear, relu and two linear heads; the decoder linear, relu, linear.

  Attributes:
    width: of features, codes and biases alike.
  """

  width: int

  def setup(self):
    def dense():
      return nn.Dense(self.width, kernel_init=nn.initializers.normal(0.02))

    self.encoder = dense()
    self.mean = dense()
    self.log_var = dense()
    self.decoder = dense()
    self.output = dense()

  def encode(
    self, image_features: Float[Array, "b d"]
  ) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
    """Mean and log-variance of the code's posterior."""
    hidden = nn.relu(self.encoder(image_features))
    return self.mean(hidden), self.log_var(hidden)

  def decode(self, codes: Float[Array, "*z d"]) -> Float[Array, "*z d"]:
    """Category biases, added to the category words of a prompt."""
    return self.output(nn.relu(self.decoder(codes)))


def example_noise(
  key: jax.Array, example_ids: Integer[Array, "b"], num_samples: int, width: int
) -> Float[Array, "b z d"]:
  """Standard normal noise that depends on the key and each example's id alone.

  So a sample does not change with the batch it comes in or the device it is on.
  """

  def draw(example_id):
    return jax.random.normal(
      jax.random.fold_in(key, example_id), (num_samples, width), jnp.float32
    )

  return jax.vmap(draw)(example_ids)


def content_ids(images: Integer[Array, "b h w 3"]) -> Integer[Array, "b"]:
  """Ids for `example_noise` that the pixels of uint8 images determine."""
  pixels = images.reshape(images.shape[0], -1).astype(jnp.uint32)
  # Multiplicative hashing: an odd multiplier for each place, then the high bits
  # are mixed into the low ones. All of it wraps at 2**32.
  multipliers = jnp.arange(pixels.shape[1], dtype=jnp.uint32)
  multipliers = multipliers * jnp.uint32(0x9E3779B2) + jnp.uint32(1)
  mixed = (pixels + jnp.uint32(1)) * multipliers[None]
  mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x2C1B3C6D)
  return (mixed ^ (mixed >> 13)).sum(axis=1, dtype=jnp.uint32)
