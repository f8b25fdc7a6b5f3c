"""A small tokenizer in CLIP's format."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from cops_jax.backbones.transformers_clip import CLIPTokenizerFast
from cops_jax.typing import Integer

MAX_LENGTH = 16  # Tokens of a caption, including its start and end tokens.


def build_tokenizer(
  folder: pathlib.Path, texts: Sequence[str]
) -> CLIPTokenizerFast:
  """Writes a byte-level BPE tokenizer with one token for each word of texts.

  The folder receives vocab.json, merges.txt and the configuration.
  """
  base = _byte_alphabet()
  vocab = base + [symbol + "</w>" for symbol in base]
  merges = []
  for word in sorted({word for text in texts for word in text.split()}):
    pieces = [*word[:-1], word[-1] + "</w>"]
    while len(pieces) > 1:
      merge = (pieces[0], pieces[1])
      pieces = [merge[0] + merge[1], *pieces[2:]]
      if merge not in merges:
        merges.append(merge)
      if pieces[0] not in vocab:
        vocab.append(pieces[0])
  vocab += ["<|startoftext|>", "<|endoftext|>"]
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "vocab.json").write_text(
    json.dumps({token: index for index, token in enumerate(vocab)})
  )
  lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
  (folder / "merges.txt").write_text("\n".join(lines) + "\n")
  tokenizer = CLIPTokenizerFast(
    str(folder / "vocab.json"),
    str(folder / "merges.txt"),
    model_max_length=77,
  )
  tokenizer.save_pretrained(folder)
  return tokenizer


def _byte_alphabet():
  from transformers.models.clip.tokenization_clip import bytes_to_unicode

  return list(bytes_to_unicode().values())


def fixed_length(
  tokenizer: CLIPTokenizerFast,
) -> Callable[[Sequence[str]], Integer[np.ndarray, "b l"]]:
  """Returns a function from texts to token ids, int32 (b, `MAX_LENGTH`)."""

  def tokenize(texts):
    return tokenizer(
      [str(text) for text in texts],
      padding="max_length",
      max_length=MAX_LENGTH,
      truncation=True,
      return_tensors="np",
    ).input_ids.astype(np.int32)

  return tokenize
