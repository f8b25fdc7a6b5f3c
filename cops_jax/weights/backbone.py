"""The function that loads the frozen backbone."""

from __future__ import annotations

from typing import Any

from cops_jax import methods
from cops_jax.weights.clip import PretrainedCLIP, load_clip
from cops_jax.weights.dino import PretrainedDINO, load_dino

# Both have the attributes config, params and sha256.
PretrainedBackbone = PretrainedCLIP | PretrainedDINO


def load_backbone(config: Any) -> PretrainedBackbone:
  """Loads the backbone that a config names, with a text tower if it is used.

  Raises:
    InputError: if the backbone cannot be loaded.
  """
  backbone = config.backbone
  source = backbone.weights, backbone.revision, backbone.sha256
  if backbone.kind == "clip":
    uses_text = methods.find(config.method).USES_TEXT
    return load_clip(*source, has_text=uses_text)
  return load_dino(backbone.kind, *source)
