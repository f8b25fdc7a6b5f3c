"""CLIP models from the Hugging Face hub, folders and files."""

from __future__ import annotations

import dataclasses
import difflib
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cops_jax.backbones.transformers_clip import (
  CLIPConfig,
  CLIPTokenizerFast,
  make_config,
)
from cops_jax.errors import InputError, shorten
from cops_jax.weights import clip_names, folders, places
from cops_jax.weights.tensor_files import read_tensor_file

DEMO_CLIP = "demo"
DEMO_FOLDER = pathlib.Path(__file__).parent / "demo_clip"

_TOKENIZER = ("vocab.json", "merges.txt")
# Files of tensors in a folder, in order of preference. Each comes with the
# function that locates a parameter in it.
_TENSOR_FILES = {
  "model.safetensors": places.torch_place,
  "pytorch_model.bin": places.torch_place,
  "flax_model.msgpack": places.flax_place,
}


@dataclasses.dataclass(frozen=True)
class PromptTokens:
  """Token ids around the learned words of a prompt, in CLIP's vocabulary."""

  start: int
  damaged: tuple[int, ...]  # The word "damaged": one token in OpenAI's CLIP.
  object: int  # The word "object".
  period: int
  end: int


OPENAI_TOKENS = PromptTokens(
  start=49406, damaged=(13568,), object=14115, period=269, end=49407
)


@dataclasses.dataclass(frozen=True)
class PretrainedCLIP:
  """A CLIP model that was read from files.

  Attributes:
    config: sizes of both towers.
    params: parameter tree of `CLIP`, float32, on the host.
    tokens: token ids around the learned words of a prompt; None without the
      text tower.
    sha256: SHA-256 of the file with the weights, in hexadecimal.
    tokenizer: folder of vocab.json and merges.txt, or None. OpenAI publishes
      its files without a tokenizer.
  """

  config: CLIPConfig
  params: Mapping[str, Any]
  tokens: PromptTokens | None
  sha256: str
  tokenizer: pathlib.Path | None = None

  def tokenize(self, sentences: Sequence[str]) -> list[tuple[int, ...]]:
    """Returns the token ids of each sentence, from start token to end token.

    Raises:
      InputError: if there is no tokenizer, or a sentence is too long or has a
        word that is not in a small vocabulary.
    """
    if self.tokenizer is None:
      raise InputError(
        "hand-written texts need a tokenizer, but this CLIP has none: put"
        " CLIP's vocab.json and merges.txt next to the file with the weights,"
        " or use a Hugging Face folder or name"
      )
    tokenizer = _read_tokenizer(self.tokenizer)
    known = tokenizer.get_vocab()
    if len(known) <= OPENAI_TOKENS.end:  # The vocabulary has only whole words.
      for sentence in sentences:
        for word in sentence.lower().split():
          word = word.rstrip(".,;:!?") or word
          if f"{word}</w>" not in known:
            words = re.findall(r"(\w{3,})</w>", " ".join(known))
            near = difflib.get_close_matches(word, words, 12, cutoff=0)
            raise InputError(
              f"this CLIP does not know the word {word!r} in {sentence!r};"
              f" choose words of its captions, such as {', '.join(near)}"
            )
    limit = self.config.text_config.max_position_embeddings
    found = [tuple(tokenizer(text).input_ids) for text in sentences]
    for sentence, ids in zip(sentences, found, strict=True):
      if len(ids) > limit:
        raise InputError(
          f"{sentence!r} has {len(ids)} tokens, but CLIP reads at most {limit}:"
          " shorten it"
        )
    return found


def load_clip(
  weights: str, revision: str = "", sha256: str = "", has_text: bool = True
) -> PretrainedCLIP:
  """Loads a CLIP model from the Hugging Face hub, a folder or a file.

  Args:
    weights: name of a model on the hub, which is downloaded once; folder in
      the hub's format (config.json, vocab.json, merges.txt and one of
      model.safetensors, pytorch_model.bin, flax_model.msgpack); file with
      OpenAI's names, which is their .pt or a state dict of it; or "demo" for
      the toy CLIP in this package. Folders and files can be addresses.
    revision: branch, tag or commit on the hub; empty for the newest.
    sha256: expected hash of the file with the weights; empty accepts any.
    has_text: if True, also reads the text tower and the tokenizer.

  Raises:
    InputError: if there is no such model, or a file is missing or damaged, has
      another hash, or does not fit its config.json.
  """
  if weights == DEMO_CLIP:
    weights = str(DEMO_FOLDER)
  path = folders.find(weights, revision, _TOKENIZER, _TENSOR_FILES)
  load = _load_file if path.is_file() else _load_folder
  return load(path, sha256, has_text)


def _load_file(path, sha256, has_text):
  file = read_tensor_file(path, sha256)
  if not clip_names.is_openai(file.tensors):
    raise InputError(
      f"{path} contains no CLIP with OpenAI's names, such as"
      " visual.conv1.weight. If it has Hugging Face's names, name its folder,"
      " which has the model's config.json and tokenizer."
    )
  config = clip_names.config_from_openai(file.tensors, str(path))
  params = clip_names.clip_params_from_tensors(
    file.tensors,
    config,
    clip_names.openai_place,
    f"{path} does not contain a whole CLIP with OpenAI's names",
    has_text,
  )
  vocabulary = config.text_config.vocab_size
  if vocabulary != OPENAI_TOKENS.end + 1:
    raise InputError(
      f"{path} has a vocabulary of {vocabulary} tokens, but OpenAI's has"
      f" {OPENAI_TOKENS.end + 1}. Use a Hugging Face folder for a model with"
      " its own tokenizer."
    )
  has_tokenizer = all((path.parent / name).is_file() for name in _TOKENIZER)
  return PretrainedCLIP(
    config,
    params,
    OPENAI_TOKENS,
    file.sha256,
    path.parent if has_tokenizer else None,
  )


def _load_folder(folder, sha256, has_text):
  values = folders.read_config(folder, "clip")
  try:
    config = make_config(values)
    num_layers = (
      config.text_config.num_hidden_layers
      + config.vision_config.num_hidden_layers
    )
  except (AttributeError, TypeError, ValueError) as error:
    raise InputError(
      f"{folder / folders.CONFIG} does not describe a CLIP: {error}"
    ) from error
  file = folders.read_tensors(folder, "clip", _TENSOR_FILES, num_layers, sha256)
  params = clip_names.clip_params_from_tensors(
    file.tensors,
    config,
    _TENSOR_FILES[file.path.name],
    f"{file.path} does not contain the CLIP that its config.json describes",
    has_text,
  )
  if not has_text:
    return PretrainedCLIP(config, params, None, file.sha256)
  tokens = _prompt_tokens(folder)
  return PretrainedCLIP(config, params, tokens, file.sha256, folder)


def _read_tokenizer(folder: pathlib.Path) -> CLIPTokenizerFast:
  vocabulary, merges = (
    str(folders.require_file(folder / name, "clip")) for name in _TOKENIZER
  )
  try:
    return CLIPTokenizerFast(vocab_file=vocabulary, merges_file=merges)
  except Exception as error:  # The tokenizer's errors are not documented.
    raise InputError(
      f"the tokenizer in {folder} is damaged ({shorten(error)}): get a new copy"
    ) from error


def _prompt_tokens(folder: pathlib.Path) -> PromptTokens:
  tokenizer = _read_tokenizer(folder)
  start, *damaged, end = tokenizer("damaged").input_ids
  ids = tokenizer("object .").input_ids
  if len(ids) != 4:
    raise InputError(
      f"the tokenizer in {folder} returns {ids} for 'object .'; expected a"
      " start token, a token for the word, one for the full stop and an end"
      " token. Choose another CLIP."
    )
  return PromptTokens(start, tuple(damaged), ids[1], ids[2], end)
