"""Configs: locked ml_collections.ConfigDicts with the fields in `FIELDS`."""

from __future__ import annotations

import pathlib
import re
import runpy
from collections.abc import Mapping
from typing import Any

from cops_jax import methods
from cops_jax.errors import InputError, UsageError, suggest
from cops_jax.field_types import Role
from cops_jax.fields import FIELDS, SECTIONS
from cops_jax.paths import expand

_KINDS = {
  str: "text",
  bool: "truth value",
  int: "whole number",
  float: "number",
  tuple: "list",
}


def default() -> Any:
  """Returns a config with the default of every field."""
  return _to_config({name: field.default for name, field in FIELDS.items()})


def recipe(name: str) -> Any:
  """Returns the config of a recipe.

  Args:
    name: name of a recipe in configs/, or path of a Python file with a function
      `get_config`; an argument of that function can follow after a colon.

  Raises:
    InputError: if the recipe or file does not exist, or the file raises an
      error.
  """
  place, argument = re.fullmatch(r"(.*?)(?::(\w+))?", name).groups()
  path = pathlib.Path(place)
  if path.suffix != ".py":
    path = _recipe_folder() / f"{place}.py"
    if place not in recipe_names():
      raise UsageError(
        f"{place!r} is not a recipe{suggest(place, recipe_names())}; the"
        f" recipes are {', '.join(recipe_names())}"
      )
  try:
    get_config = runpy.run_path(str(path))["get_config"]
    config = get_config(*filter(None, [argument]))
    for field, value in flatten(config.to_dict()).items():
      config.update_from_flattened_dict({field: _expand(value)})
    return config.lock()
  except InputError:
    raise
  except OSError as error:
    raise InputError(f"{path} cannot be read: {error.strerror}") from error
  except Exception as error:  # A user's file can raise anything.
    reason = f"{type(error).__name__}: {error}"
    raise InputError(f"{path} does not return a config: {reason}") from error


def _expand(value):
  if isinstance(value, tuple):
    return tuple(map(_expand, value))
  return expand(value) if isinstance(value, str) else value


def recipe_names() -> list[str]:
  """Returns the names of the published recipes, sorted."""
  return sorted(path.stem for path in _recipe_folder().glob("[a-z]*.py"))


def _recipe_folder():
  """Returns configs/ of the clone or, once installed, of the package."""
  package = pathlib.Path(__file__).parent
  installed = package / "configs"
  return installed if installed.exists() else package.parent / "configs"


def ensemble_of(weights: str, backbone: Any) -> Any:
  """Returns the recipe prompt_ensemble for any CLIP.

  Like the recipe for OpenAI's ViT-L/14@336, it scores 37 x 37 patches of the
  last layer and has a value path from the sixth layer to the last.

  Args:
    weights: value of config.backbone.weights; "demo" returns the recipe
      prompt_ensemble_demo.
    backbone: CLIP's configuration, a transformers.CLIPConfig.
  """
  if weights == "demo":
    return recipe("prompt_ensemble_demo")
  config, vision = recipe("prompt_ensemble"), backbone.vision_config
  config.backbone.weights = weights
  config.model.image_size_pixels = 37 * vision.patch_size
  config.model.feature_layers = (vision.num_hidden_layers,)
  config.model.num_value_layers = max(vision.num_hidden_layers - 5, 0)
  return config


def reading(config: Any) -> dict[str, int]:
  """Returns the keyword arguments of `images.read` that a config sets."""
  return {
    "bits_per_channel": config.input.bits_per_channel,
    "max_pixels": int(config.input.max_image_megapixels * 1e6),
  }


def restore(recorded: Mapping[str, Any], source: str, version: str) -> Any:
  """Returns a recorded config as a config of this version.

  Args:
    recorded: nested dictionaries; missing fields get their defaults.
    source: name of the run or file that contains it, for messages.
    version: version of this project that recorded it, for messages.

  Raises:
    InputError: if it has an unknown field, or a field of another type.
  """
  values = complete(recorded)
  errors = [f"{name!r} is unknown" for name in values.keys() - FIELDS]
  for name, field in FIELDS.items():
    kind = type(field.default)
    if kind is float and type(values[name]) is int:
      values[name] = float(values[name])  # JSON can turn 1.0 into 1.
    if expected := _find_mistype(name, values[name]):
      errors.append(f"{name} is {values[name]!r}, not a {expected}")
  if errors:
    raise InputError(
      f"{source} was written by version {version}, and its config does not fit"
      f" this version: {'; '.join(sorted(errors))}. Install that version."
    )
  return _to_config(values)


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a config's values by dotted name; missing fields get defaults.

  Args:
    config: nested dictionaries. Unknown fields are kept; lists become tuples.
  """
  values = {name: field.default for name, field in FIELDS.items()}
  for name, value in flatten(config).items():
    values[name] = tuple(value) if isinstance(value, list) else value
  return values


def decides(name: str, role: Role) -> bool:
  """Returns whether a field has a role; an unknown field has every role."""
  if name not in FIELDS:
    return True
  section = SECTIONS.get(name.partition(".")[0], Role(0))
  own = FIELDS[name].role
  return role in (section if own is None else own)


def check_values(config: Any, backbone: Any) -> None:
  """Checks every field of a config.

  Args:
    config: config to check.
    backbone: configuration of the backbone; see `vision.sizes_of`.

  Raises:
    InputError: if a field is missing, if its value does not fit its limits, the
      backbone or another field, or if a field that the method does not read is
      not at its default.
  """
  values = flatten(config.to_dict())
  missing = FIELDS.keys() - values.keys()
  if missing:
    raise InputError(
      f"the config lacks {', '.join(sorted(missing))}. Start from"
      " cops_jax.config.default(), which has every field."
    )
  for name in FIELDS:
    if expected := _find_mistype(name, values[name]):
      _refuse(name, values[name], f"a {expected}")
  methods.find(config.method)
  unread = methods.unread_fields(config.method)
  changed = [
    f"config.{name}={field.default!r}"
    for name, field in FIELDS.items()
    if name in unread and values[name] != field.default
  ]
  if changed:
    raise InputError(
      f"the method {config.method!r} does not read these fields; leave them at"
      f" their defaults: {', '.join(changed)}"
    )
  for name, field in FIELDS.items():
    if not field.accepts(values[name]):
      _refuse(name, values[name], field.describe_limits())
  for name, expected in _misfits(config, backbone, unread):
    if name not in unread:
      _refuse(name, values[name], expected)


def _find_mistype(name, value):
  """Returns the kind of value that a field requires; empty if it fits."""
  default = FIELDS[name].default
  if type(value) is not type(default):
    return _KINDS[type(default)]
  if isinstance(default, tuple):
    kind = type(default[0]) if default else str
    if any(type(item) is not kind for item in value):
      return f"list of {_KINDS[kind]}s"
  return ""


def _refuse(name, value, expected):
  raise InputError(f"config.{name} is {value!r}; it must be {expected}")


def _misfits(config, backbone, unread):
  """Yields fields that do not fit the backbone, the method or other fields.

  Each comes with a description of the values that fit.
  """
  from cops_jax.backbones.vision import sizes_of
  from cops_jax.images.tiles import EXPECTED, parse_grid

  model, sizes = config.model, sizes_of(backbone)
  uses_text = methods.find(config.method).USES_TEXT
  if uses_text and config.backbone.kind != "clip":
    yield "backbone.kind", f"'clip' with the method {config.method!r}"
  if model.image_size_pixels % sizes.patch_size:
    expected = f"a multiple of the patch size {sizes.patch_size}"
    yield "model.image_size_pixels", expected
  num_layers = sizes.num_layers
  layers = model.feature_layers
  if not layers or min(layers) < 1 or max(layers) > num_layers:
    yield "model.feature_layers", f"whole numbers from 1 to {num_layers}"
  if model.num_value_layers and not uses_text:
    expected = f"0 with the method {config.method!r}, which has no value path"
    yield "model.num_value_layers", expected
  if model.num_value_layers > num_layers:
    yield "model.num_value_layers", f"at most the {num_layers} vision layers"
  if model.smoothing_window_patches % 2 == 0:
    yield "model.smoothing_window_patches", "odd"
  if uses_text:
    yield from _text_misfits(model, backbone, unread)
  tiles = config.evaluation.tiles
  if not parse_grid(tiles):
    yield "evaluation.tiles", f"{EXPECTED}, or empty"
  if tiles and config.feature_cache.dtype != "none":
    expected = f"empty with feature_cache.dtype {config.feature_cache.dtype!r}"
    yield "evaluation.tiles", f"{expected}, which stores whole images only"


def _text_misfits(model, clip, unread):
  """Yields the misfits among the fields of prompts for CLIP's text tower."""
  if model.num_state_words and clip.projection_dim % model.num_heads:
    width = clip.projection_dim
    yield "model.num_heads", f"a divisor of CLIP's joint width {width}"
  num_words = sum(
    model[field]
    for field in ("num_context_words", "num_state_words", "num_category_words")
    if f"model.{field}" not in unread
  )
  if not num_words:
    yield "model.num_context_words", "at least 1 if there are no other words"
  if model.deep_prompt_length > num_words:
    yield "model.deep_prompt_length", f"at most the {num_words} learned words"
  num_layers = clip.text_config.num_hidden_layers
  if model.deep_prompt_depth >= num_layers:
    expected = f"less than the {num_layers} text layers"
    yield "model.deep_prompt_depth", expected


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns a nested config's values by dotted name."""
  flat = {}
  for name, value in config.items():
    if isinstance(value, dict):
      flat |= flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat


def _to_config(values):
  import ml_collections

  nested = {}
  for name, value in values.items():
    section, _, key = name.rpartition(".")
    (nested.setdefault(section, {}) if section else nested)[key] = value
  return ml_collections.ConfigDict(nested).lock()
