"""Downloads from the Hugging Face hub, into its client's own cache."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Callable, Collection


def split_name(text: str) -> tuple[str, str] | None:
  """Name and revision of OWNER/NAME or OWNER/NAME@REVISION; "" for the newest.

  None if the text is no such name, or there is a file or folder of that name.
  """
  found = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@(.+))?", text)
  if not found or os.path.exists(text):
    return None
  return found[1], found[2] or ""


def download(
  name: str,
  revision: str,
  choose: Callable[[Collection[str]], Collection[str]],
) -> pathlib.Path:
  """A folder with files of a repository; those that are in the cache stay.

  Without a network, or with HF_HUB_OFFLINE=1, it is an earlier download.

  Args:
    name: of the repository.
    revision: branch, tag or commit; "" for the newest.
    choose: which files to download, from their names.

  Raises:
    Exception: of the many kinds that the hub's client has: there is no such
      repository or revision, or no network and no earlier download.
  """
  import huggingface_hub

  revision = revision or None
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
