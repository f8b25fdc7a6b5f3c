"""Reads CLIP's parameters by the names in each kind of weight file.

This project uses the names of Flax CLIP in transformers. Files with the names
of torch CLIP have torch's order of axes. OpenAI's files also stack the
projections of queries, keys and values into one tensor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cops_jax.backbones.transformers_clip import ACT2FN, CLIPConfig
from cops_jax.errors import InputError, shorten
from cops_jax.weights.places import (
  Place,
  flax_place,
  params_from_tensors,
  torch_place,
)

# Parameters for images. The module cannot be built without the scale.
VISION_PARAMS = ("vision_model", "visual_projection", "logit_scale")
# Entries that are not parameters. OpenAI's archives contain the three sizes.
_EXCUSED_NAMES = ("input_resolution", "context_length", "vocab_size")
_EXCUSED_SUFFIXES = (".position_ids", ".attn_mask")

_OPENAI_PARTS = (
  ("text_model.encoder.layers.", "transformer.resblocks."),
  ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
  ("layer_norm1.", "ln_1."),
  ("layer_norm2.", "ln_2."),
  ("self_attn.out_proj.", "attn.out_proj."),
  ("mlp.fc1.", "mlp.c_fc."),
  ("mlp.fc2.", "mlp.c_proj."),
  ("text_model.embeddings.token_embedding.", "token_embedding."),
  ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
  ("text_model.final_layer_norm.", "ln_final."),
  ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
  ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
  (
    "vision_model.embeddings.position_embedding.weight",
    "visual.positional_embedding",
  ),
  ("vision_model.pre_layrnorm.", "visual.ln_pre."),
  ("vision_model.post_layernorm.", "visual.ln_post."),
)
_OPENAI_PROJECTIONS = {
  "text_projection.kernel": "text_projection",
  "visual_projection.kernel": "visual.proj",
}
_OPENAI_STACKED = re.compile(r"self_attn\.([qkv])_proj\.")
_OPENAI_HEAD_WIDTH = 64


def openai_place(name: str, num_axes: int) -> Place:
  """Returns a parameter's place in a file of OpenAI's CLIP."""
  if name in _OPENAI_PROJECTIONS:  # Their axes are (in, out), as in flax.
    return flax_place(_OPENAI_PROJECTIONS[name], num_axes)
  name, axes, _ = torch_place(name, num_axes)
  for ours, theirs in _OPENAI_PARTS:
    name = name.replace(ours, theirs)
  if stacked := _OPENAI_STACKED.search(name):
    name = name.replace(stacked[0], "attn.in_proj_")
    return Place(name, axes, "qkv".index(stacked[1]))
  return Place(name, axes)


def clip_param_shapes(config: CLIPConfig) -> Mapping[str, Any]:
  """Returns the tree of `CLIP(config)` as `jax.ShapeDtypeStruct`s.

  The shapes are written out because tracing the initialization takes seconds.

  Raises:
    TypeError: if the sizes are not numbers.
    ValueError: if no CLIP can have these sizes.
  """
  text, vision = config.text_config, config.vision_config
  words, patches = text.hidden_size, vision.hidden_size
  joint = config.projection_dim
  num_positions = (vision.image_size // vision.patch_size) ** 2 + 1
  patch = (vision.patch_size, vision.patch_size, vision.num_channels)
  shapes = {
    "text_model": {
      "embeddings": {
        "token_embedding": {"embedding": (text.vocab_size, words)},
        "position_embedding": {
          "embedding": (text.max_position_embeddings, words)
        },
      },
      "encoder": {"layers": _layer_shapes(text)},
      "final_layer_norm": _norm_shapes(words),
    },
    "vision_model": {
      "embeddings": {
        "class_embedding": (patches,),
        "patch_embedding": {"kernel": (*patch, patches)},
        "position_embedding": {"embedding": (num_positions, patches)},
      },
      "pre_layrnorm": _norm_shapes(patches),
      "encoder": {"layers": _layer_shapes(vision)},
      "post_layernorm": _norm_shapes(patches),
    },
    "text_projection": {"kernel": (words, joint)},
    "visual_projection": {"kernel": (patches, joint)},
    "logit_scale": (),
  }
  return jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
    shapes,
    is_leaf=lambda node: isinstance(node, tuple),
  )


def _layer_shapes(tower):
  width, hidden = tower.hidden_size, tower.intermediate_size
  if width % tower.num_attention_heads:
    raise ValueError(f"{tower.num_attention_heads} heads do not divide {width}")
  if tower.hidden_act not in ACT2FN:
    raise ValueError(f"{tower.hidden_act!r} is not an activation")
  dense = {"kernel": (width, width), "bias": (width,)}
  layer = {
    "self_attn": dict.fromkeys(
      ("q_proj", "k_proj", "v_proj", "out_proj"), dense
    ),
    "layer_norm1": _norm_shapes(width),
    "layer_norm2": _norm_shapes(width),
    "mlp": {
      "fc1": {"kernel": (width, hidden), "bias": (hidden,)},
      "fc2": {"kernel": (hidden, width), "bias": (width,)},
    },
  }
  return {str(index): layer for index in range(tower.num_hidden_layers)}


def _norm_shapes(width):
  return {"scale": (width,), "bias": (width,)}


def clip_params_from_tensors(
  tensors: Mapping[str, np.ndarray],
  config: CLIPConfig,
  place: Callable[[str, int], Place],
  source: str,
  has_text: bool = True,
) -> Mapping[str, Any]:
  """Returns the float32 parameters of `CLIP(config)` from a file's tensors.

  Args:
    tensors: arrays by their names in the file.
    config: expected sizes.
    place: `flax_place`, `torch_place` or `openai_place`, by the file's names.
    source: beginning of an error's message, which names the file.
    has_text: if True, also returns the text tower's parameters. They are
      checked in either case.

  Raises:
    InputError: if the sizes are impossible or the tensors do not fit them.
  """
  try:
    shapes = clip_param_shapes(config)
  except Exception as error:  # Bad sizes fail late and in many ways.
    raise InputError(
      f"{source}: no CLIP can be built with its sizes"
      f" ({type(error).__name__}: {shorten(error)})"
    ) from error
  tensors = {
    name: array
    for name, array in tensors.items()
    if name not in _EXCUSED_NAMES and not name.endswith(_EXCUSED_SUFFIXES)
  }
  params = params_from_tensors(tensors, shapes, place, source)
  if has_text:
    return params
  return {name: params[name] for name in VISION_PARAMS}


def is_openai(tensors: Mapping[str, np.ndarray]) -> bool:
  """Returns True if tensors have the names of OpenAI's CLIP."""
  return any(name.startswith("visual.") for name in tensors)


def config_from_openai(
  tensors: Mapping[str, np.ndarray], source: str
) -> CLIPConfig:
  """Returns the sizes of OpenAI's CLIP, from the shapes of its tensors.

  Heads are 64 wide, as in all of OpenAI's models. Narrower towers have one.

  Raises:
    InputError: if the tensors from this source belong to another model.
  """
  if any(name.startswith("visual.layer1.") for name in tensors):
    raise InputError(
      f"{source} contains a CLIP with a ResNet, but a vision transformer is"
      " needed, such as ViT-L-14-336px.pt"
    )

  def shape(name, num_axes):
    found = tensors[name].shape if name in tensors else ()
    if len(found) != num_axes or 0 in found:
      raise InputError(
        f"{source} contains no CLIP with OpenAI's names: {name} has the shape"
        f" {found} or is missing, expected {num_axes} axes"
      )
    return found

  def tower(prefix, width):
    layers = f"{prefix}transformer.resblocks."
    numbers = {
      name.removeprefix(layers).partition(".")[0]
      for name in tensors
      if name.startswith(layers)
    }
    return dict(
      hidden_size=width,
      intermediate_size=shape(f"{layers}0.mlp.c_fc.weight", 2)[0],
      num_hidden_layers=len(numbers),
      num_attention_heads=max(1, width // _OPENAI_HEAD_WIDTH),
      hidden_act="quick_gelu",
    )

  width, _, _, patch_size = shape("visual.conv1.weight", 4)
  grid = math.isqrt(shape("visual.positional_embedding", 2)[0] - 1)
  vocabulary, text_width = shape("token_embedding.weight", 2)
  return CLIPConfig(
    text_config=dict(
      vocab_size=vocabulary,
      max_position_embeddings=shape("positional_embedding", 2)[0],
      # The defaults of transformers are not OpenAI's ids.
      bos_token_id=vocabulary - 2,
      eos_token_id=vocabulary - 1,
      **tower("", text_width),
    ),
    vision_config=dict(
      image_size=grid * patch_size,
      patch_size=patch_size,
      **tower("visual.", width),
    ),
    projection_dim=shape("text_projection", 2)[1],
  )
