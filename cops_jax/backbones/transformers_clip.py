"""transformers' Flax CLIP. No other module imports transformers.

Version 4.57 is the last with Flax and gets no more fixes. The project therefore
uses only CLIP's configuration, Flax modules and tokenizer, and reads only those
fields of a `config.json` that the towers use.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from typing import Any


def _load_lazily(package, name):
  """Delays loading a package's module until it is first used."""
  path = f"{package}.{name}"
  if path not in sys.modules:
    spec = importlib.util.find_spec(path)
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = sys.modules[path] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    setattr(sys.modules[package], name, module)


# transformers imports this module only for text generation, which is not used
# here. The module is slow to import, because it imports much of scipy.
_load_lazily("jax.experimental", "sparse")
# Without these variables, transformers imports torch and tensorflow if they are
# installed, which takes seconds. It reads the variables once. A program that
# also uses its torch models must import transformers before this package.
_unset = [name for name in ("USE_TORCH", "USE_TF") if name not in os.environ]
os.environ.update(dict.fromkeys(_unset, "0"))
try:
  from transformers import CLIPConfig, CLIPTokenizerFast
  from transformers.modeling_flax_utils import ACT2FN
  from transformers.models.clip.modeling_flax_clip import FlaxCLIPModule
finally:
  for _name in _unset:
    del os.environ[_name]

__all__ = [
  "ACT2FN",
  "CLIPConfig",
  "CLIPTokenizerFast",
  "FlaxCLIPModule",
  "make_config",
]

_TOWER_FIELDS = (
  *("hidden_size", "intermediate_size", "num_hidden_layers"),
  *("num_attention_heads", "hidden_act", "layer_norm_eps"),
)
_SECTION_FIELDS = {
  "text_config": (
    *("vocab_size", "max_position_embeddings"),
    *("bos_token_id", "eos_token_id", "pad_token_id", *_TOWER_FIELDS),
  ),
  "vision_config": ("num_channels", "image_size", "patch_size", *_TOWER_FIELDS),
}


def make_config(values: Mapping[str, Any]) -> CLIPConfig:
  """Builds CLIP's configuration from the fields that the towers use.

  All other fields are dropped, because transformers acts on some of them, such
  as `_attn_implementation_internal`, which names code to run.

  Args:
    values: contents of a `config.json`. Older files also contain
      `text_config_dict` and `vision_config_dict`, which take precedence.

  Raises:
    TypeError: if a section is not a mapping.
    ValueError: if transformers rejects a value.
  """
  picked = {}
  for section, fields in _SECTION_FIELDS.items():
    for name in (section, f"{section}_dict"):
      if (found := values.get(name)) is not None:
        if not isinstance(found, Mapping):
          raise TypeError(f"{name} is {found!r}, not a mapping")
        picked[name] = {key: found[key] for key in fields if key in found}
  if "projection_dim" in values:
    picked["projection_dim"] = values["projection_dim"]
  return CLIPConfig(**picked)
