"""Category tokens: implicit sampling with a variational auto-encoder."""

from __future__ import annotations

import flax.linen as nn

from cops_jax.typing import Array, Float


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
