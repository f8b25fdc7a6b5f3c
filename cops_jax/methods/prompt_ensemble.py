"""Prompt ensemble: hand-written texts on a frozen CLIP, without training.

It follows Jeong et al., WinCLIP, CVPR 2023, with AnomalyCLIP's value path and
anomaly maps. The text feature of a state is the mean over its sentences.
The trainable tree contains the text features of both states. CLIP's text tower
therefore runs only once, and exports do not contain it.

A file of texts has three sections, `[normal]`, `[anomalous]` and `[templates]`,
with one text per line. A state has a {} for the object's name, and a template
has a {} for the state. Every state is put into every template. Lines that begin
with # are comments.
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

_FOLDER = pathlib.Path(__file__).parent / "prompt_texts"
_SECTIONS = ("normal", "anomalous", "templates")

Tokens = tuple[tuple[int, ...], ...]


class PromptEnsemble(nn.Module):
  """Compares images with each state's mean text; see `methods.Model`.

  Attributes:
    config, backbone: see `methods.Model`.
    tokens: token ids of each state's sentences, from start to end token.
  """

  config: Any
  backbone: CLIP
  tokens: tuple[Tokens, Tokens]

  needs_masks = needs_noise = has_layer_tokens = False
  upsampling = "bilinear"
  loss_terms = None

  @nn.nowrap
  def num_prompt_tokens(self, *, is_training: bool) -> float:
    """Returns 0, because texts are encoded only once."""
    return 0.0

  @nn.nowrap
  def init_trainable(
    self, key: jax.Array, backbone_params: Mapping[str, Any]
  ) -> Mapping[str, Any]:
    """Returns the text features of both states, (2, d), ignoring the key."""
    (text_features,) = self._encode_states(backbone_params, [self.tokens])
    return {"ensemble": {"text_features": text_features}}

  @nn.nowrap
  def category_text_features(
    self, backbone: Any, categories: Sequence[str]
  ) -> dict[str, Float[Array, "s=2 d"]]:
    """Returns text features with each category's name as the object's name.

    Args:
      backbone: a `weights.clip.PretrainedCLIP`.
      categories: names of categories; "metal_nut" becomes "metal nut".

    Raises:
      InputError: if `PretrainedCLIP.tokenize` rejects a sentence.
    """
    states = [
      _tokenize(self.config, backbone, name.replace("_", " "))
      for name in categories
    ]
    features = self._encode_states(backbone.params, states)
    return dict(zip(categories, features, strict=True))

  @nn.nowrap
  def _encode_states(self, backbone_params, objects):
    """Returns both states' text features for each object's sentences."""
    rows = [[ids for state in tokens for ids in state] for tokens in objects]
    length = max(len(ids) for row in rows for ids in row)
    # The text tower is moved to the device once, for all objects.
    vision = ("vision_model", "visual_projection")
    text_params = jax.device_put(
      {
        name: backbone_params[name]
        for name in backbone_params
        if name not in vision
      }
    )

    @jax.jit  # Compiled once, because all sentences have the same length.
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
    """Returns each state's mean text feature, L2-normalised before and after.

    Args:
      token_ids, ends: sentences of both states, as many of each as in `tokens`;
        see `CLIP.encode_texts`.
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

    If the batch has text_features (b, 2, d), they replace the model's.
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
    InputError: if `read_texts` or `PretrainedCLIP.tokenize` rejects the texts.
  """
  tokens = _tokenize(config, backbone, config.model.object_name)
  return PromptEnsemble(config, tower, tokens)


def _tokenize(config, backbone, name):
  """Returns token ids of the sentences about an object, for each state."""
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
  """Returns one sentence about an object for each state in each template."""
  return [
    template.replace("{}", state.replace("{}", name))
    for state, template in itertools.product(states, templates)
  ]


def read_texts(
  source: str, normal: Sequence[str] = (), anomalous: Sequence[str] = ()
) -> tuple[list[str], list[str], list[str]]:
  """Reads the states and templates of a file of texts.

  Args:
    source: path of a file, or "demo" or "photos" for this project's files.
    normal, anomalous: states that replace those of the file, such as "a weld
      with a crack". They can contain a {} for the object's name. A leading
      article is dropped, because templates have their own.

  Returns:
    Normal states, anomalous states and templates.

  Raises:
    InputError: if the file cannot be read, or a line or a state is invalid.
  """
  path = _FOLDER / f"{source}.txt"
  if not path.is_file():
    path = to_path(source)
  try:
    lines = path.read_text("utf-8").splitlines()
  except (OSError, ValueError) as error:
    raise InputError(
      f"config.model.texts is {source!r}, but the file cannot be read"
      f" ({error}). Set it to the path of a file of texts or to one of"
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
        f" {', '.join(f'[{name}]' for name in _SECTIONS)} or, below a heading,"
        " a text with one {}"
      )
  empty = [name for name in _SECTIONS if not sections[name]]
  if empty:
    raise InputError(
      f"{path} has no texts under [{empty[0]}]. Add at least one line."
    )
  return sections


def _without_article(text, name):
  state = re.sub(r"^(an?|the)\s+", "", " ".join(text.split()), flags=re.I)
  if not state:
    raise InputError(
      f"config.model.{name}_texts has an empty text: {text!r}. Remove it."
    )
  return state
