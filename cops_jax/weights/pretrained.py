"""Pretrained prompts: the authors' own, a repository of the hub, or a folder.

A repository or folder holds `prompts.safetensors`, with the record of the run
that trained them; `config.json`, a copy of the record that people and the hub
read; `thresholds.json`, if thresholds were chosen; and `README.md`, the model
card.
`cops_jax.publish` writes such a folder.
"""

from __future__ import annotations

import os
import pathlib

from cops_jax.errors import InputError, suggest
from cops_jax.paths import is_address
from cops_jax.weights import published
from cops_jax.weights.locate import locate, split_hub_name
from cops_jax.weights.tensor_files import read_tensor_file

PROMPTS, CONFIG = "prompts.safetensors", "config.json"
THRESHOLDS, CARD = "thresholds.json", "README.md"
FILES = (PROMPTS, CONFIG, THRESHOLDS, CARD)


def find(name: str | os.PathLike) -> pathlib.Path:
  """Returns the file of pretrained prompts on this host.

  Beside it are the other FILES of a repository or folder.

  Args:
    name: a name of `published.AUTHORS_FILES`, or OWNER/NAME or
      OWNER/NAME@REVISION (branch, tag or commit) on the Hugging Face hub, which
      are downloaded once; or the path or address of a folder.

  Raises:
    InputError: there are no such prompts, they cannot be downloaded, or the
      repository or folder holds something else.
  """
  if published.is_name(name):
    return published.fetch(os.fspath(name))
  if not (is_address(name) or os.path.exists(name) or split_hub_name(name)):
    raise InputError(
      f"{os.fspath(name)!r} is neither one of"
      f" {', '.join(published.AUTHORS_FILES)} nor a folder here nor OWNER/NAME"
      " or OWNER/NAME@REVISION on the Hugging Face hub"
      f"{suggest(os.fspath(name), published.AUTHORS_FILES)}"
    )
  folder = locate(name, lambda names: [file for file in FILES if file in names])
  path = folder / PROMPTS
  if not path.is_file() or not read_tensor_file(path).record:
    raise InputError(
      f"{name} holds no pretrained prompts, as it has no {PROMPTS} with the"
      " record of a run: expected a folder that cops weights publish wrote, or"
      " such a repository"
    )
  return path


def find_start(path: str | os.PathLike) -> str | os.PathLike:
  """Returns the file of named pretrained prompts, or any other path as given.

  Args:
    path: see `find`, or see `prompts.load_prompts`.

  Raises:
    InputError: see `find`.
  """
  is_pretrained = not is_address(path) and (
    published.is_name(path)
    or split_hub_name(path)
    or pathlib.Path(path, PROMPTS).is_file()
  )
  return find(path) if is_pretrained else path
