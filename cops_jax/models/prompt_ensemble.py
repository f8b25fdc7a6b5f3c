"""An ensemble of hand-written prompts on a frozen CLIP; nothing is trained.

After Jeong et al., WinCLIP, CVPR 2023, with AnomalyCLIP's value path and maps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cops_jax.models.clip import CLIP
from cops_jax.models.encoding import join_params
from cops_jax.models.flax_clip import CLIPConfig
from cops_jax.models.similarity import normalize
from cops_jax.typing import Array, Float, Integer

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

  def text_features(
    self, token_ids: Integer[Array, "b l"], ends: Integer[Array, "b"]
  ) -> Float[Array, "s=2 d"]:
    """The mean of each state's sentences, L2-normalised before and after.

    Args:
      token_ids, ends: of as many sentences of each state as `tokens` has; see
        `CLIP.encode_texts`.
    """
    features = self.clip.encode_texts(token_ids, ends)
    features = normalize(features.astype(jnp.float32))
    number = len(self.tokens[0])
    means = features[:number].mean(axis=0), features[number:].mean(axis=0)
    return normalize(jnp.stack(means))


def encode_states(
  model: PromptEnsemble,
  clip_params: Mapping[str, Any],
  states: Sequence[tuple[Tokens, Tokens]],
) -> list[Float[Array, "s=2 d"]]:
  """Text features of both states, for each of several objects.

  Args:
    model: its own tokens are not used, but for their number.
    clip_params: CLIP's parameters.
    states: in place of the model's tokens, for each object.
  """
  rows = [[ids for state in tokens for ids in state] for tokens in states]
  length = max(len(ids) for row in rows for ids in row)
  # What the text tower needs, put on the device once.
  vision = ("vision_model", "visual_projection")
  text_params = jax.device_put(
    {name: clip_params[name] for name in clip_params if name not in vision}
  )

  @jax.jit  # Once for all objects, as all are of the same length.
  def encode(clip, token_ids, ends):
    variables = join_params({}, clip)
    return model.apply(variables, token_ids, ends, method="text_features")

  found = []
  for row in rows:
    padded = np.zeros((len(row), length), np.int32)
    for place, ids in zip(padded, row, strict=True):
      place[: len(ids)] = ids
    ends = np.array([len(ids) - 1 for ids in row])
    found.append(encode(text_params, padded, ends))
  return found
