"""Pretrained prompts: by name, from a repository on the hub, or from a folder.

A name such as "cops-visa" means prompts that a method's authors published. A
repository or folder contains files that `cops_jax.publish` writes:

- `prompts.safetensors`, with the record of the run that trained the prompts;
- `config.json`, a copy of the record for people and the hub;
- `thresholds.json`, if thresholds were chosen;
- `README.md`, the model card.
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

  The other FILES of a repository or folder are next to it.

  Args:
    name: name in `published.AUTHORS_FILES`; OWNER/NAME or OWNER/NAME@REVISION
      (branch, tag or commit) on the Hugging Face hub; or the path or address of
      a folder. Names are downloaded once.

  Raises:
    InputError: if the prompts do not exist or cannot be downloaded, or the
      repository or folder contains something else.
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
      f"{name} has no pretrained prompts: expected a folder or repository with"
      f" a {PROMPTS} that `cops weights publish` wrote"
    )
  return path


def find_start(path: str | os.PathLike) -> str | os.PathLike:
  """Returns the file of pretrained prompts, or any other path unchanged.

  Raises:
    InputError: if the path names pretrained prompts, but `find` fails.
  """
  is_pretrained = not is_address(path) and (
    published.is_name(path)
    or split_hub_name(path)
    or pathlib.Path(path, PROMPTS).is_file()
  )
  return find(path) if is_pretrained else path
