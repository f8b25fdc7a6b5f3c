"""Prompts that the methods' authors published: addresses and local copies.

A file is recognized by the hash of its content. It has no record of its
training, so the record is built from the recipe that its authors used.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pathlib
from typing import TYPE_CHECKING, NamedTuple

from cops_jax.errors import InputError

# The command line reads AUTHORS_FILES, so only functions import slow modules.
if TYPE_CHECKING:
  from cops_jax.runs.record import Record
  from cops_jax.weights.tensor_files import TensorFile

_logger = logging.getLogger(__name__)

# GitHub's servers of files at a commit. For a file in Git LFS, the first server
# returns a pointer, and the second returns the file.
_SERVERS = (
  "https://raw.githubusercontent.com",
  "https://media.githubusercontent.com/media",
)
_POINTER = b"version https://git-lfs"
_COPS = "cqylunlun/CoPS/a3a41fcce10afd0e5c608c878ac8174c0ad426e3/results/models"
_ANOMALYCLIP = (
  "zqhang/AnomalyCLIP/45ed4dd35c05797d854294b5e8d585c545920089/checkpoints"
)


class AuthorsFile(NamedTuple):
  """A file of prompts in a public repository.

  Attributes:
    place: repository, commit and path on GitHub.
    recipe: name of the recipe that the authors trained with.
    hashes: accepted hashes of the content, each a Git blob's hash or a SHA-256.
    licence: licence of the repository.
  """

  place: str
  recipe: str
  hashes: tuple[str, ...]
  licence: str = "MIT"


AUTHORS_FILES = {
  "cops-visa": AuthorsFile(
    f"{_COPS}/visa/epoch_10.pth",
    "visa",
    (
      "9b658b4cf04d05b69af77c151d22b10b24786fc2",
      "9fe3682d79f40b0acf8dde8808098e1365c161f8baefc0663e3131905704909c",
    ),
  ),
  "cops-mvtec": AuthorsFile(
    f"{_COPS}/mvtec/epoch_5.pth",
    "mvtec",
    (
      "eddc18e60823ac370a0c43526226fe745c1caf07",
      "ccb6caf98709e04d3e6faa35031c20114f9937f60d7a1e82834109e2b3bed1bf",
    ),
  ),
  "anomalyclip-visa": AuthorsFile(
    f"{_ANOMALYCLIP}/9_12_4_multiscale/epoch_15.pth",
    "anomalyclip_visa",
    ("c90f1d9d92d158b436a8fc193f984d4cec8b1fc8",),
  ),
  "anomalyclip-mvtec": AuthorsFile(
    f"{_ANOMALYCLIP}/9_12_4_multiscale_visa/epoch_15.pth",
    "anomalyclip_mvtec",
    ("72adc786e031b49ea288ba5f815f0d38cf158708",),
  ),
}


def is_name(text: str | os.PathLike) -> bool:
  """Returns True for a name in AUTHORS_FILES that no local file has."""
  return os.fspath(text) in AUTHORS_FILES and not os.path.exists(text)


def addresses(name: str) -> list[str]:
  """Returns the address of a file and its address for Git LFS."""
  return [f"{server}/{AUTHORS_FILES[name].place}" for server in _SERVERS]


def kept_path(name: str) -> pathlib.Path:
  """Returns the path of a file in the user's cache, which need not exist."""
  import pooch

  file = pathlib.PurePosixPath(AUTHORS_FILES[name].place).name
  return pathlib.Path(pooch.os_cache("cops_jax"), "prompts", name, file)


def fetch(name: str) -> pathlib.Path:
  """Returns the verified file of authors' prompts; downloads it if needed.

  Args:
    name: name in AUTHORS_FILES.

  Raises:
    InputError: if the file cannot be downloaded, or is not the published one.
  """
  import pooch

  path = kept_path(name)
  address, large = addresses(name)
  if path.exists():
    if fault := _find_fault(path, name):
      raise InputError(
        f"{path} is not the file of {name}: {fault}. Delete it to download it"
        f" again, or replace it with the file from {address}."
      )
    return path

  def download(address, partial, _):
    get = pooch.HTTPDownloader(chunk_size=2**16)
    get(address, partial, None)
    if pathlib.Path(partial).read_bytes().startswith(_POINTER):
      get(large, partial, None)
    if fault := _find_fault(partial, name):
      raise OSError(None, fault)

  pooch.get_logger().setLevel(logging.WARNING)
  _logger.info("downloading %s to %s", address, path)
  try:  # pooch renames the file only after it is complete and verified.
    pooch.retrieve(address, None, path.name, path.parent, downloader=download)
  except OSError as error:  # This includes all errors of requests.
    raise InputError(
      f"{name} cannot be downloaded from {address}"
      f" ({error.strerror or type(error).__name__}): download it in another way"
      f" and put it at {path}, or set HTTPS_PROXY"
    ) from error
  return path


def find_record(file: TensorFile) -> Record | None:
  """Returns the record of an authors' file, or None for other files.

  The record has no hash of the backbone, because it is unknown. It has the
  backbone's dtype only if the recipe requires one.
  """
  from cops_jax.config import recipe
  from cops_jax.runs.record import Record

  hashes = {file.sha256, _hash_blob(file.path.read_bytes())}
  for name, row in AUTHORS_FILES.items():
    if not hashes.isdisjoint(row.hashes):
      config = recipe(row.recipe).to_dict()
      if config["backbone"]["dtype"] == "auto":
        del config["backbone"]["dtype"]
      return Record(config, "", origin=f"{name}, the authors' prompts")
  return None


def _find_fault(path, name):
  """Returns why a file is not the published one; empty if it is."""
  try:
    content = pathlib.Path(path).read_bytes()
  except OSError as error:
    return f"it cannot be read ({error.strerror})"
  if content.startswith(_POINTER):
    return "it is a Git LFS pointer to that file"
  blob, expected = _hash_blob(content), AUTHORS_FILES[name].hashes
  if {blob, hashlib.sha256(content).hexdigest()}.isdisjoint(expected):
    return f"its Git blob hash is {blob}, not {expected[0]}"
  return ""


def _hash_blob(content):
  """Returns the hash by which Git names a file's content."""
  head = b"blob %d\0" % len(content)
  return hashlib.sha1(head + content, usedforsecurity=False).hexdigest()
