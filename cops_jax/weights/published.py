"""The authors' own prompts: where they are published, and copies of them here.

A file is known by its content, wherever it lies. It has no record of its
training; the recipe that its authors trained by stands in for one.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pathlib
from typing import TYPE_CHECKING, NamedTuple

from cops_jax.errors import InputError

# The command line reads the names: what is slow is imported where it is used.
if TYPE_CHECKING:
  from cops_jax.runs.record import Record
  from cops_jax.weights.tensor_files import TensorFile

_logger = logging.getLogger(__name__)

# GitHub's servers of files at a commit. The first serves a pointer in place of
# a file that is kept by Git LFS, and the second serves that file.
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
    recipe: recipe that it was trained by.
    hashes: accepted hashes of its content: that of a Git blob, or SHA-256.
    licence: licence of its repository.
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
  """Returns whether a text names authors' prompts, and no file here has it."""
  return os.fspath(text) in AUTHORS_FILES and not os.path.exists(text)


def addresses(name: str) -> list[str]:
  """Returns the address of a file, and that for Git LFS."""
  return [f"{server}/{AUTHORS_FILES[name].place}" for server in _SERVERS]


def kept_path(name: str) -> pathlib.Path:
  """Returns the path of a file in the user's cache, whether it is there."""
  import pooch

  file = pathlib.PurePosixPath(AUTHORS_FILES[name].place).name
  return pathlib.Path(pooch.os_cache("cops_jax"), "prompts", name, file)


def fetch(name: str) -> pathlib.Path:
  """Returns the verified file of the authors' prompts, downloaded once.

  Args:
    name: a name of AUTHORS_FILES.

  Raises:
    InputError: it cannot be downloaded, or is another file than published.
  """
  import pooch

  path = kept_path(name)
  address, large = addresses(name)
  if path.exists():
    if fault := _find_fault(path, name):
      raise InputError(
        f"{path} is not the file of {name}: {fault}. Delete it, which downloads"
        f" it again, or put the file of {address} there."
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
  try:  # To another name: the path is that of a complete, verified file.
    pooch.retrieve(address, None, path.name, path.parent, downloader=download)
  except OSError as error:  # All of requests' are.
    raise InputError(
      f"{name} cannot be downloaded from {address}"
      f" ({error.strerror or type(error).__name__}): fetch this file by other"
      f" means and put it at {path}, or name a proxy in HTTPS_PROXY"
    ) from error
  return path


def find_record(file: TensorFile) -> Record | None:
  """Returns the record that stands in for the authors'; None for other files.

  It lacks the hash of their backbone, which is unknown, and the type of the
  backbone's computation unless the recipe requires one.
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
  """Returns why a file is not the published one; "" if it is."""
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
