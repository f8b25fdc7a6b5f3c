"""Local paths and gs:// addresses of Google Cloud Storage."""

from __future__ import annotations

import functools
import logging
import os
import pathlib
import re
from typing import Any

from cops_jax.errors import InputError, needs_extra

# pathlib.Path or etils.epath.Path, whose import is slow.
AnyPath = Any


def is_address(path: str | os.PathLike) -> bool:
  """Returns whether a path begins with a scheme, even an unsupported one."""
  return re.match(r"[a-z][a-z0-9+.-]+:/", os.fspath(path)) is not None


def expand(text: str) -> str:
  """Replaces ~ by the home folder at the beginning of every path in a text.

  A path begins at the start of the text, or after a colon, comma, equals sign
  or quote, as in flags, in lists, and after prefixes such as folder:.
  """
  home = os.path.expanduser("~")
  return re.sub(r"(?<![^=:,'\"])~(?=/|$)", lambda _: home, text)


def to_path(path: str | os.PathLike) -> AnyPath:
  """Returns a local path with ~ expanded, or an etils path for an address.

  `cops_jax.files` reads and writes both.

  Raises:
    InputError: if an address is not gs://BUCKET/PATH, or gcsfs is not
      installed.
  """
  if not is_address(path):
    return pathlib.Path(os.path.expanduser(path))
  text = os.fspath(path)
  if not re.match("gs://[^/]", text):
    raise InputError(
      f"{text} is not a supported address; expected gs://BUCKET/PATH or a local"
      " path"
    )
  _prepare_gcsfs()
  from etils import epath

  return epath.Path(text)


@functools.cache
def _prepare_gcsfs():
  """Configures gcsfs for etils and Orbax."""
  with needs_extra("a gs:// address", "gcs", "gcsfs"):
    import gcsfs  # noqa: F401
  import fsspec

  fsspec.config.conf.setdefault("gcs", {}).update(
    use_listings_cache=False,  # Other processes write too.
    consistency="md5",  # Verifies what was written.
  )
  # By default gcsfs warns at every start that it looks for a rare kind of
  # bucket, and logs the errors that it also raises.
  os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
  for name in ("gcsfs", "google.auth"):
    logging.getLogger(name).setLevel(logging.CRITICAL)


def readable(path: str | os.PathLike) -> str:
  r"""Returns a path as text; bytes that are not UTF-8 become \xNN."""
  return os.fsencode(path).decode("utf-8", "backslashreplace")


def require_local(path: str | os.PathLike, what: str) -> None:
  """Raises InputError if a path is an address; `what` names it in messages."""
  if is_address(path):
    raise InputError(
      f"{what} is {os.fspath(path)}, but it must be a local path. Mount the"
      " bucket with gcsfuse, or copy the folder with `gcloud storage rsync"
      " --recursive`."
    )
