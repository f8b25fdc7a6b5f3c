"""Paths on local disks, and addresses in object storage: gs://bucket/run."""

from __future__ import annotations

import os
import pathlib
import re
from typing import Any

from cops_jax.errors import InputError

# pathlib.Path, or etils' epath.Path, which takes long to import.
AnyPath = Any

# By scheme: the extra of pyproject.toml that it needs, and its package.
SCHEMES = {"gs": ("gcs", "gcsfs"), "s3": ("s3", "s3fs")}


def is_address(path: str | os.PathLike) -> bool:
  """Whether a path begins with a scheme, known or not."""
  return _scheme(path) is not None


def to_path(path: str | os.PathLike) -> AnyPath:
  """A local path or, of an address, etils' path, which joins as pathlib's do.

  Files at either are read and written by `cops_jax.files`.

  Raises:
    InputError: an address has no bucket, or a scheme that is not known.
  """
  if not is_address(path):
    return pathlib.Path(path)
  text, scheme = os.fspath(path), _scheme(path)
  if scheme not in SCHEMES or not re.match(r"\w+://[^/]", text):
    raise InputError(
      f"{text} is no address that can be used: expected gs://BUCKET/PATH or a"
      " local path"
    )
  from etils import epath

  return epath.Path(text)


def require_local(path: str | os.PathLike, what: str) -> None:
  """Raises InputError for an address, where files must be on local disks."""
  if is_address(path):
    raise InputError(
      f"{what} is {os.fspath(path)}, and addresses cannot be used there: give a"
      " local path"
    )


def _scheme(path):
  found = re.match(r"([a-z][a-z0-9+.-]+):/", os.fspath(path))
  return found and found[1]
