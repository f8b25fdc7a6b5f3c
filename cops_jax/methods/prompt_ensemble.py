"""Prompt ensemble: hand-written texts on a frozen CLIP; nothing is trained.

After Jeong et al., WinCLIP, CVPR 2023, with AnomalyCLIP's value path and maps.
The trainable tree holds both states' text features, so that CLIP's text tower
runs once and is not part of exports.

A file of texts has three sections, `[normal]`, `[anomalous]` and `[templates]`,
with a text in each line. States have a {} for the object's name, templates one
for the state; lines that begin with # are comments. Every state comes in every
template.
"""

from __future__ import annotations

import itertools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cops_jax import scoring
from cops_jax.backbones.clip import CLIP
from cops_jax.errors import InputError
from cops_jax.paths import to_path
from cops_jax.typing import Array, Float, Integer

TITLE = "Prompt ensemble"
FIELDS = (
  "model.texts",
  "model.normal_texts",
  "model.anomalous_texts",
  "model.object_name",
  "model.use_category_names",
)
IS_TRAINED, USES_TEXT = False, True

# Files of this project by name.
_FOLDER = pathlib.Path(__file__).parent / "prompt_texts"
_SECTIONS = ("normal", "anomalous", "templates")

Tokens = tuple[tuple[int, ...], ...]


class PromptEnsemble(nn.Module):
  """Compares images with each state's mean text; see `methods.Model`.

  Attributes:
    config: the run's, frozen.
    backbone: the frozen towers.
    tokens: ids of each state's sentences, from start to end token.
  """

  config: Any
  backbone: CLIP
  tokens: tuple[Tokens, Tokens]

  needs_masks = needs_noise = has_layer_tokens = False
  upsampling = "bilinear"
  loss_terms = None

  @nn.nowrap
  def num_prompt_tokens(self, *, is_training: bool) -> float:
    """Returns 0: texts are encoded once."""
    return 0.0

  @nn.nowrap
  def init_trainable(
    self, key: jax.Array, backbone_params: Mapping[str, Any]
  ) -> Mapping[str, Any]:
    """Returns the text features of both states, (2, d); ignores the key."""
    (text_features,) = self._encode_states(backbone_params, [self.tokens])
    return {"ensemble": {"text_features": text_features}}

  @nn.nowrap
  def category_text_features(
    self, backbone: Any, categories: Sequence[str]
  ) -> dict[str, Float[Array, "s=2 d"]]:
    """Returns text features with each category's name in place of the object's.

    Args:
      backbone: a `weights.clip.PretrainedCLIP`.
      categories: names; "metal_nut" becomes "metal nut".

    Raises:
      InputError: see `PretrainedCLIP.tokenize`.
    """
    states = [
      _tokenize(self.config, backbone, name.replace("_", " "))
      for name in categories
    ]
    features = self._encode_states(backbone.params, states)
    return dict(zip(categories, features, strict=True))

  @nn.nowrap
  def _encode_states(self, backbone_params, objects):
    """Text features of both states, for the sentences of each object."""
    rows = [[ids for state in tokens for ids in state] for tokens in objects]
    length = max(len(ids) for row in rows for ids in row)
    # What the text tower needs, put on the device once.
    vision = ("vision_model", "visual_projection")
    text_params = jax.device_put(
      {
        name: backbone_params[name]
        for name in backbone_params
        if name not in vision
      }
    )

    @jax.jit  # Once for all objects, as all are of the same length.
    def encode(params, token_ids, ends):
      variables = {"params": {"backbone": params}}
      return self.apply(variables, token_ids, ends, method="text_features")

    found = []
    for row in rows:
      padded = np.zeros((len(row), length), np.int32)
      for place, ids in zip(padded, row, strict=True):
        place[: len(ids)] = ids
      ends = np.array([len(ids) - 1 for ids in row])
      found.append(encode(text_params, padded, ends))
    return found

  def text_features(
    self, token_ids: Integer[Array, "b l"], ends: Integer[Array, "b"]
  ) -> Float[Array, "s=2 d"]:
    """Returns each state's mean text, L2-normalised before and after.

    Args:
      token_ids, ends: as many sentences of each state as `tokens` has; see
        `CLIP.encode_texts`.
    """
    features = self.backbone.encode_texts(token_ids, ends)
    features = scoring.normalize(features.astype(jnp.float32))
    number = len(self.tokens[0])
    means = features[:number].mean(axis=0), features[number:].mean(axis=0)
    return scoring.normalize(jnp.stack(means))

  def score(
    self,
    features: tuple[Float[Array, "b d"], Float[Array, "b f n d"]],
    batch: Mapping[str, jax.Array],
  ) -> tuple[Float[Array, "b"], Float[Array, "b n"]]:
    """Returns scores of images and patches; see `methods.Model`.

    The batch may have text_features (b, 2, d) of its images' categories.
    """
    text_features = self.variables["params"]["ensemble"]["text_features"]
    text_features = batch.get("text_features", text_features)
    temperature = self.config.model.temperature
    return scoring.probabilities(
      *scoring.text_logits(*features, text_features, temperature),
      batch.get("memory_distances"),
      self.config.evaluation.memory_share,
    )


def build_model(config: Any, tower: CLIP, backbone: Any) -> PromptEnsemble:
  """Returns the model; see `methods.Method`.

  Raises:
    InputError: see `read_texts` and `PretrainedCLIP.tokenize`.
  """
  tokens = _tokenize(config, backbone, config.model.object_name)
  return PromptEnsemble(config, tower, tokens)


def _tokenize(config, backbone, name):
  """Ids of the sentences about an object, for each state."""
  settings = config.model
  normal, anomalous, templates = read_texts(
    settings.texts, settings.normal_texts, settings.anomalous_texts
  )
  return tuple(
    tuple(backbone.tokenize(fill_templates(templates, states, name)))
    for states in (normal, anomalous)
  )


def fill_templates(
  templates: Sequence[str], states: Sequence[str], name: str
) -> list[str]:
  """Returns a sentence about an object for every state in every template."""
  return [
    template.replace("{}", state.replace("{}", name))
    for state, template in itertools.product(states, templates)
  ]


def read_texts(
  source: str, normal: Sequence[str] = (), anomalous: Sequence[str] = ()
) -> tuple[list[str], list[str], list[str]]:
  """Reads a file of texts, or one of this project's by its name.

  Args:
    source: a file's path, or "demo" or "photos".
    normal, anomalous: replace the file's states, such as "a weld with a crack".
      They may hold a {} for the object's name; an article that they begin with
      is dropped, since templates bring their own.

  Returns:
    Normal states, anomalous states and templates.

  Raises:
    InputError: there is no such file, or a line is not as the module says.
  """
  path = _FOLDER / f"{source}.txt"
  if not path.is_file():
    path = to_path(source)
  try:
    lines = path.read_text("utf-8").splitlines()
  except (OSError, ValueError) as error:
    raise InputError(
      f"config.model.texts is {source!r}, and no file of texts can be read"
      f" there ({error}): give a path, or one of"
      f" {', '.join(sorted(file.stem for file in _FOLDER.glob('*.txt')))}"
    ) from error
  sections = _parse(lines, path)
  for name, given in (("normal", normal), ("anomalous", anomalous)):
    if given:
      sections[name] = [_without_article(text, name) for text in given]
  return tuple(sections[name] for name in _SECTIONS)


def _parse(lines, path):
  sections, texts = {name: [] for name in _SECTIONS}, None
  for number, line in enumerate(lines, start=1):
    line = line.strip()
    heading = line.removeprefix("[").removesuffix("]")
    if not line or line.startswith("#"):
      continue
    if line == f"[{heading}]" and heading in sections:
      texts = sections[heading]
    elif texts is not None and line.count("{}") == 1:
      texts.append(line)
    else:
      raise InputError(
        f"line {number} of {path} is {line!r}: expected one of the headings"
        f" {', '.join(f'[{name}]' for name in _SECTIONS)} or, below one, a text"
        " with one {}"
      )
  empty = [name for name in _SECTIONS if not sections[name]]
  if empty:
    raise InputError(f"{path} has no texts under [{empty[0]}]")
  return sections


def _without_article(text, name):
  state = re.sub(r"^(an?|the)\s+", "", " ".join(text.split()), flags=re.I)
  if not state:
    raise InputError(f"config.model.{name}_texts has an empty text: {text!r}")
  return state
