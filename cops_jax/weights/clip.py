"""CLIP models from the Hugging Face hub, folders and files."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from cops_jax.backbones.transformers_clip import (
  CLIPConfig,
  CLIPTokenizerFast,
  make_config,
)
from cops_jax.errors import InputError, shorten
from cops_jax.paths import is_address
from cops_jax.weights import clip_names
from cops_jax.weights.locate import locate, split_hub_name
from cops_jax.weights.tensor_files import read_tensor_file

DEMO_CLIP = "demo"
DEMO_FOLDER = pathlib.Path(__file__).parent / "demo_clip"

_TOKENIZER = ("vocab.json", "merges.txt")
# A folder's files of tensors, the preferred one first, and their names' form.
_TENSOR_FILES = {
  "model.safetensors": clip_names.torch_place,
  "pytorch_model.bin": clip_names.torch_place,
  "flax_model.msgpack": clip_names.flax_place,
}


@dataclasses.dataclass(frozen=True)
class PromptTokens:
  """Token ids around the learned words of a prompt, in CLIP's vocabulary."""

  start: int
  damaged: tuple[int, ...]  # The word "damaged": one token in CLIP's own.
  object: int  # The word "object".
  period: int
  end: int


OPENAI_TOKENS = PromptTokens(
  start=49406, damaged=(13568,), object=14115, period=269, end=49407
)


@dataclasses.dataclass(frozen=True)
class PretrainedCLIP:
  """A CLIP model as read from disk.

  Attributes:
    config: sizes of both towers.
    params: parameter tree of `CLIP`, float32, on the host.
    tokens: token ids around the learned words of a prompt.
    sha256: hash of the file with the weights, in hexadecimal.
    tokenizer: folder of vocab.json and merges.txt; None if there is none, as
      beside OpenAI's own files.
  """

  config: CLIPConfig
  params: Mapping[str, Any]
  tokens: PromptTokens
  sha256: str
  tokenizer: pathlib.Path | None = None

  def tokenize(self, sentences: Sequence[str]) -> list[tuple[int, ...]]:
    """Returns each sentence's token ids, from the start to the end token.

    Raises:
      InputError: there is no tokenizer, or a sentence is too long or has a word
        outside the vocabulary of a CLIP with a small one.
    """
    if self.tokenizer is None:
      raise InputError(
        "this CLIP came without a tokenizer, which hand-written texts need: put"
        " CLIP's vocab.json and merges.txt beside the file with the weights, or"
        " give a Hugging Face folder or name"
      )
    tokenizer = _read_tokenizer(self.tokenizer)
    known = tokenizer.get_vocab()
    if len(known) <= OPENAI_TOKENS.end:  # It has whole words alone.
      for sentence in sentences:
        for word in sentence.lower().split():
          word = word.rstrip(".,;:!?") or word
          if f"{word}</w>" not in known:
            raise InputError(
              f"this CLIP does not know the word {word!r} of {sentence!r}: its"
              " vocabulary is that of its own captions"
            )
    limit = self.config.text_config.max_position_embeddings
    found = [tuple(tokenizer(text).input_ids) for text in sentences]
    for sentence, ids in zip(sentences, found, strict=True):
      if len(ids) > limit:
        raise InputError(
          f"{sentence!r} has {len(ids)} tokens; CLIP reads at most {limit}"
        )
    return found


def load_clip(
  weights: str, revision: str = "", sha256: str = ""
) -> PretrainedCLIP:
  """Loads a CLIP model from the Hugging Face hub, a folder or a file.

  Args:
    weights: name of a model on the hub, which is downloaded once; or a folder
      in its format (config.json, vocab.json, merges.txt and one of
      model.safetensors, pytorch_model.bin, flax_model.msgpack); or a file in
      OpenAI's names, their own .pt or a state dict made from it; or "demo" for
      the toy in this package. Folder and file may be addresses.
    revision: branch, tag or commit on the hub; "" for the newest.
    sha256: expected hash of the file with the weights; "" accepts any.

  Raises:
    InputError: there is no such model, or a file is missing, damaged, not the
      pinned one, or does not fit its config.json.
  """
  if weights == DEMO_CLIP:
    weights = str(DEMO_FOLDER)
  if revision and (is_address(weights) or not split_hub_name(weights)):
    raise InputError(
      f"config.backbone.revision is {revision!r}, but {weights!r} is not a"
      " model on the hub; leave the field empty"
    )
  path = locate(weights, _needed_files, revision)
  return (_load_file if path.is_file() else _load_folder)(path, sha256)


def load_backbone(config: Any) -> PretrainedCLIP:
  """Loads the CLIP that a config names.

  Args:
    config: a ConfigDict with the fields of `cops_jax.config`.

  Raises:
    InputError: see `load_clip`.
  """
  backbone = config.backbone
  return load_clip(backbone.weights, backbone.revision, backbone.sha256)


def _load_file(path, sha256):
  file = read_tensor_file(path, sha256)
  if not clip_names.is_openai(file.tensors):
    raise InputError(
      f"{path} holds no CLIP in OpenAI's names, such as visual.conv1.weight."
      " Give a file in Hugging Face's names by its folder, which has the"
      " model's config.json and tokenizer."
    )
  config = clip_names.config_from_openai(file.tensors, str(path))
  params = clip_names.params_from_tensors(
    file.tensors,
    config,
    clip_names.openai_place,
    f"{path} does not hold a whole CLIP in OpenAI's names",
  )
  vocabulary = config.text_config.vocab_size
  if vocabulary != OPENAI_TOKENS.end + 1:
    raise InputError(
      f"{path} has a vocabulary of {vocabulary} tokens; OpenAI's has"
      f" {OPENAI_TOKENS.end + 1}. Give a model with its own tokenizer as a"
      " Hugging Face folder."
    )
  has_tokenizer = all((path.parent / name).is_file() for name in _TOKENIZER)
  return PretrainedCLIP(
    config,
    params,
    OPENAI_TOKENS,
    file.sha256,
    path.parent if has_tokenizer else None,
  )


def _load_folder(folder, sha256):
  config_file = _existing(folder / "config.json")
  try:
    config = make_config(json.loads(config_file.read_text("utf-8")))
    num_layers = (
      config.text_config.num_hidden_layers
      + config.vision_config.num_hidden_layers
    )
  except (ValueError, RecursionError) as error:
    raise InputError(f"{config_file} is not JSON: {error}") from error
  except (AttributeError, TypeError) as error:
    raise InputError(f"{config_file} is not CLIP's: {error}") from error
  name = next(
    (name for name in _TENSOR_FILES if (folder / name).is_file()),
    "model.safetensors",
  )
  file = read_tensor_file(_existing(folder / name), sha256)
  if num_layers > len(file.tensors):  # Building so many could take forever.
    raise InputError(
      f"{config_file} describes {num_layers} layers, but {file.path} holds only"
      f" {len(file.tensors)} tensors"
    )
  params = clip_names.params_from_tensors(
    file.tensors,
    config,
    _TENSOR_FILES[name],
    f"{file.path} does not hold the CLIP model that its config.json describes",
  )
  tokens = _prompt_tokens(folder)
  return PretrainedCLIP(config, params, tokens, file.sha256, folder)


def _needed_files(names):
  """Returns the files of a folder that are read, or the one file, ""."""
  tensors = [name for name in _TENSOR_FILES if name in names][:1]
  needed = ("config.json", "vocab.json", "merges.txt", *tensors, "")
  return [name for name in needed if name in names]


def _existing(path: pathlib.Path) -> pathlib.Path:
  if not path.is_file():
    raise InputError(
      f"{path} does not exist; a Hugging Face CLIP folder holds config.json,"
      " model.safetensors, vocab.json and merges.txt"
    )
  return path


def _read_tokenizer(folder: pathlib.Path) -> CLIPTokenizerFast:
  vocabulary, merges = (str(_existing(folder / name)) for name in _TOKENIZER)
  try:
    return CLIPTokenizerFast(vocab_file=vocabulary, merges_file=merges)
  except Exception as error:  # Its own kinds are not documented.
    raise InputError(
      f"the tokenizer in {folder} is damaged: {shorten(error)}"
    ) from error


def _prompt_tokens(folder: pathlib.Path) -> PromptTokens:
  tokenizer = _read_tokenizer(folder)
  start, *damaged, end = tokenizer("damaged").input_ids
  ids = tokenizer("object .").input_ids
  if len(ids) != 4:
    raise InputError(
      f"the tokenizer in {folder} must know the word 'object' and the full stop"
      f" as one token each, between a start and an end token; it gives {ids}"
    )
  return PromptTokens(start, tuple(damaged), ids[1], ids[2], end)
