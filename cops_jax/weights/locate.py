"""Locates weights on this host, in a bucket or on the Hugging Face hub."""

from __future__ import annotations

import logging
import os
import pathlib
import re
from collections.abc import Callable, Collection

import requests

from cops_jax.errors import InputError
from cops_jax.files import fetch
from cops_jax.paths import is_address

_logger = logging.getLogger(__name__)

# Seconds to wait for a connection to the hub, and for the next byte.
_TIMEOUTS = (10.0, 60.0)

# Function from the names of all files to the names of the needed files.
Choose = Callable[[Collection[str]], Collection[str]]


def split_hub_name(text: str | os.PathLike) -> tuple[str, str] | None:
  """Splits OWNER/NAME or OWNER/NAME@REVISION into name and revision.

  Without @REVISION, the revision is empty. Returns None if the text has another
  form or is the path of an existing file or folder.
  """
  text = os.fspath(text)
  found = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@(.+))?", text)
  if not found or os.path.exists(text):
    return None
  return found[1], found[2] or ""


def locate(
  name: str | os.PathLike, choose: Choose, revision: str = ""
) -> pathlib.Path:
  """Returns a file or folder on this host; copies or downloads it if needed.

  A repository is downloaded into the cache of the hub's client. Without a
  network, or with HF_HUB_OFFLINE=1, an earlier download is used.

  Args:
    name: path or address of a file or folder, or OWNER/NAME or
      OWNER/NAME@REVISION on the Hugging Face hub.
    choose: function that chooses the files to copy or download.
    revision: branch, tag or commit on the hub; empty for the newest.

  Raises:
    InputError: if the name does not exist, or cannot be copied or downloaded.
  """
  name = os.path.expanduser(name)
  if is_address(name):
    return fetch(name, choose)
  if os.path.exists(name):
    return pathlib.Path(name)
  repository = split_hub_name(name)
  if repository is None:
    raise InputError(
      f"{name!r} is neither a file or folder here nor OWNER/NAME or"
      " OWNER/NAME@REVISION on the Hugging Face hub"
    )
  try:
    return _download(repository[0], revision or repository[1] or None, choose)
  except Exception as error:  # The hub's client raises many kinds of errors.
    reason = type(error).__name__
    if getattr(error, "filename", None):  # A file of its cache.
      reason = f"{error.filename}: {error.strerror}; see HF_HOME"
    at = f" at revision {revision!r}" if revision else ""
    raise InputError(
      f"{name!r}{at} is neither a file or folder here nor a repository that can"
      f" be downloaded from the Hugging Face hub ({reason}), and"
      " the hub's cache does not have it"
    ) from error


class _Patient(requests.adapters.BaseAdapter):
  """Sends requests, and sets `_TIMEOUTS` for those without a timeout."""

  def __init__(self, adapter):
    super().__init__()
    self._adapter = adapter

  def send(self, *args, timeout=None, **kwargs):
    return self._adapter.send(*args, timeout=timeout or _TIMEOUTS, **kwargs)

  def close(self):
    self._adapter.close()


def _download(name, revision, choose):
  import huggingface_hub
  import huggingface_hub.constants  # Not imported with the package.

  endpoint = huggingface_hub.constants.ENDPOINT
  session = huggingface_hub.get_session()
  session.mount(endpoint, _Patient(session.get_adapter(endpoint)))
  _logger.info("looking for %s on %s", name, endpoint)
  try:
    available = huggingface_hub.HfApi().list_repo_files(name, revision=revision)
    folder = huggingface_hub.snapshot_download(
      name, revision=revision, allow_patterns=choose(available)
    )
  except Exception as error:
    try:
      folder = huggingface_hub.snapshot_download(
        name, revision=revision, local_files_only=True
      )
    except Exception:
      raise error from None
  return pathlib.Path(folder)
