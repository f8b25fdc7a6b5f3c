"""An ensemble of hand-written prompts on a frozen CLIP; nothing is trained.

After Jeong et al., WinCLIP, CVPR 2023, with AnomalyCLIP's value path and maps.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from transformers import CLIPConfig

from cops_jax.models.clip import CLIP
from cops_jax.models.encoding import encode_images
from cops_jax.models.similarity import normalize
from cops_jax.typing import Array, Float

Tokens = tuple[tuple[int, ...], ...]


class PromptEnsemble(nn.Module):
  """CLIP's mean text feature of each state; see `models.encoding`.

  Attributes:
    clip_config: sizes of CLIP.
    tokens: of the sentences of each state, from start to end token.
    feature_layers: 1-based vision layers whose patches are compared.
    num_value_layers: vision layers with a value path, counted from the last.
    temperature: that cosines are divided by.
    dtype: of CLIP's computation.
    attention: see `CLIP`.
  """

  clip_config: CLIPConfig
  tokens: tuple[Tokens, Tokens]
  feature_layers: tuple[int, ...]
  num_value_layers: int
  temperature: float
  dtype: Any = jnp.float32
  attention: str = "auto"

  def setup(self):
    self.clip = CLIP(
      self.clip_config, dtype=self.dtype, attention=self.attention
    )

  def encode_images(
    self, images: Float[Array, "b h w 3"]
  ) -> tuple[Float[Array, "b d"], Float[Array, "b f n d"]]:
    """See `encoding.encode_images`."""
    return encode_images(self, images)

  def text_features(self) -> Float[Array, "s=2 d"]:
    """The mean of each state's sentences, L2-normalised before and after."""
    sentences = [ids for state in self.tokens for ids in state]
    ends = np.array([len(ids) - 1 for ids in sentences])
    padded = np.zeros((len(sentences), max(ends) + 1), np.int32)
    for row, ids in zip(padded, sentences, strict=True):
      row[: len(ids)] = ids
    features = self.clip.encode_texts(jnp.asarray(padded), jnp.asarray(ends))
    features = normalize(features.astype(jnp.float32))
    number = len(self.tokens[0])
    means = features[:number].mean(axis=0), features[number:].mean(axis=0)
    return normalize(jnp.stack(means))
