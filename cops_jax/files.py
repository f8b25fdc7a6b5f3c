"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
import uuid
from collections.abc import Iterator

from cops_jax.errors import WriteError


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives a path to write to, which becomes the file once all is written.

  Makes the folders above it. If processes, on any hosts, write one path at the
  same time, the last one wins.

  Raises:
    WriteError: it cannot be written.
  """
  partial = path.parent / f".{uuid.uuid4().hex}.partial"
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      yield partial
      os.replace(partial, path)
    finally:
      partial.unlink(missing_ok=True)
  except OSError as error:
    reason = error.strerror or error
    raise WriteError(f"{path} cannot be written: {reason}") from error


def write_file(path: pathlib.Path, content: str | bytes) -> None:
  """Writes a file and the folders above it; a reader never sees a part.

  Raises:
    WriteError: it cannot be written.
  """
  with whole_file(path) as partial:
    partial.write_bytes(
      content.encode() if isinstance(content, str) else content
    )
