"""Pretrained prompts: a repository of the Hugging Face hub, or a folder.

Either holds `prompts.safetensors`, with the record of the run that trained
them; `config.json`, the same record for people and the prompts' hash;
`thresholds.json`, if thresholds were chosen; and `README.md`, the model card.
`cops_jax.publish` writes such a folder.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pathlib

from cops_jax import copies
from cops_jax.errors import InputError
from cops_jax.files import seal, unseal
from cops_jax.paths import is_address
from cops_jax.runs.record import Record, from_json
from cops_jax.weights import hub
from cops_jax.weights.tensor_files import read_tensor_file

_logger = logging.getLogger(__name__)

PROMPTS, CONFIG = "prompts.safetensors", "config.json"
THRESHOLDS, CARD = "thresholds.json", "README.md"
FILES = (CONFIG, PROMPTS, THRESHOLDS, CARD)


def find(name: str | os.PathLike) -> pathlib.Path:
  """The folder of pretrained prompts, on this host and found to be whole.

  Args:
    name: OWNER/NAME or OWNER/NAME@REVISION (branch, tag or commit) on the
      Hugging Face hub, which is downloaded once; or a folder, or its address,
      of which a copy is kept.

  Raises:
    InputError: there is no such repository or folder, or it holds something
      else, or what it holds is damaged.
  """
  name = os.fspath(name)
  folder = _locate(name)
  for file in (CONFIG, PROMPTS):
    if not (folder / file).is_file():
      raise InputError(
        f"{name} holds no pretrained prompts, as it has no {file}: expected a"
        " folder that cops weights publish wrote, or such a repository"
      )
  _check(folder)
  if not (folder / CARD).is_file():
    _logger.warning(
      "%s has no model card, %s, to say what its prompts were trained on and"
      " how good they are",
      *(name, CARD),
    )
  return folder


def find_start(path: str | os.PathLike) -> str | os.PathLike:
  """The file of prompts where pretrained ones are named; other paths as given.

  Args:
    path: see `find`, or see `prompts.load_prompts`.

  Raises:
    InputError: see `find`.
  """
  is_named = not is_address(path) and (
    hub.split_name(os.fspath(path)) or pathlib.Path(path, CONFIG).is_file()
  )
  return find(path) / PROMPTS if is_named else path


def config_json(record: Record, prompts_sha256: str) -> str:
  """The text of `config.json`.

  Args:
    record: of the run that trained the prompts.
    prompts_sha256: see `prompts.hash_prompts`.
  """
  values = {
    "prompts_sha256": prompts_sha256,
    "record": dataclasses.asdict(record),
  }
  return seal(values, indent=2)


def read_config(path: os.PathLike, content: bytes) -> tuple[Record, str]:
  """The inverse of `config_json`.

  Args:
    path: of the file, for errors.
    content: of the file.

  Raises:
    InputError: it is damaged, or another program's.
  """
  try:
    values = unseal(content)
    text, prompts_sha256 = (
      json.dumps(values["record"]),
      str(values["prompts_sha256"]),
    )
  except (ValueError, KeyError) as error:
    reason = f"no {error}" if isinstance(error, KeyError) else error
    raise InputError(
      f"{path} is damaged or was not written by cops weights publish ({reason})"
    ) from error
  return from_json(text, str(path)), prompts_sha256


def _locate(name):
  if is_address(name):
    return copies.fetch(name, _needed_files)
  if os.path.exists(name):
    return pathlib.Path(name)
  repository = hub.split_name(name)
  if repository is None:
    raise InputError(
      f"{name!r} is neither a folder here nor OWNER/NAME or OWNER/NAME@REVISION"
      " on the Hugging Face hub"
    )
  try:
    return hub.download(*repository, _needed_files)
  except Exception as error:
    raise InputError(
      f"{name!r} is neither a folder here nor a repository that can be"
      f" downloaded from the Hugging Face hub ({type(error).__name__}), and the"
      " hub's cache does not have it"
    ) from error


def _needed_files(names):
  return [name for name in FILES if name in names]


def _check(folder):
  """Raises InputError unless config.json and the prompts belong together."""
  config, prompts = folder / CONFIG, folder / PROMPTS
  try:
    content = config.read_bytes()
  except OSError as error:
    raise InputError(f"{config} cannot be read: {error.strerror}") from error
  record, prompts_sha256 = read_config(config, content)
  file = read_tensor_file(prompts)
  own = from_json(file.record, str(prompts)) if file.record else None
  if (own, file.content_sha256) != (record, prompts_sha256):
    raise InputError(
      f"{prompts} does not hold the prompts that {config} describes: get the"
      " folder again"
    )
