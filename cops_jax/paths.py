"""Paths on local disks, and gs:// addresses in Google Cloud Storage."""

from __future__ import annotations

import functools
import logging
import os
import pathlib
import re
from typing import Any

from cops_jax.errors import InputError, needs_extra

# pathlib.Path, or etils' epath.Path, which takes long to import.
AnyPath = Any


def is_address(path: str | os.PathLike) -> bool:
  """Returns whether a path begins with a scheme, supported or not."""
  return re.match(r"[a-z][a-z0-9+.-]+:/", os.fspath(path)) is not None


def expand(text: str) -> str:
  """Replaces ~ by the home folder where a path begins.

  That is at the beginning and, for flags, prefixes such as folder: and lists,
  after a colon, comma, equals sign or quote.
  """
  home = os.path.expanduser("~")
  return re.sub(r"(?<![^=:,'\"])~(?=/|$)", lambda _: home, text)


def to_path(path: str | os.PathLike) -> AnyPath:
  """Returns a local path, with ~ expanded, or a path of etils for an address.

  Files at either are read and written by `cops_jax.files`.

  Raises:
    InputError: the address is not gs://BUCKET/PATH, or gcsfs is not installed.
  """
  if not is_address(path):
    return pathlib.Path(os.path.expanduser(path))
  text = os.fspath(path)
  if not re.match("gs://[^/]", text):
    raise InputError(
      f"{text} is no address that can be used: expected gs://BUCKET/PATH or a"
      " local path"
    )
  _prepare_gcsfs()
  from etils import epath

  return epath.Path(text)


@functools.cache
def _prepare_gcsfs():
  """Sets how etils and Orbax use gcsfs."""
  with needs_extra("a gs:// address", "gcs", "gcsfs"):
    import gcsfs  # noqa: F401
  import fsspec

  fsspec.config.conf.setdefault("gcs", {}).update(
    use_listings_cache=False,  # Other processes write too.
    consistency="md5",  # Compares what has arrived.
  )
  # Otherwise gcsfs reports at every start that it looks for a rare kind of
  # bucket. It logs errors besides raising them.
  os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
  for name in ("gcsfs", "google.auth"):
    logging.getLogger(name).setLevel(logging.CRITICAL)


def readable(path: str | os.PathLike) -> str:
  r"""Returns a path as text; bytes that are not UTF-8 become \xNN."""
  return os.fsencode(path).decode("utf-8", "backslashreplace")


def require_local(path: str | os.PathLike, what: str) -> None:
  """Raises InputError for an address, where files must be on a local disk."""
  if is_address(path):
    raise InputError(
      f"{what} is {os.fspath(path)}, and must be a local path: mount the bucket"
      " with gcsfuse, or copy the folder with gcloud storage rsync --recursive"
    )
