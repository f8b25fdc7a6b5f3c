"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
import uuid
from collections.abc import Iterator


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives a path to write to, which becomes the file once all is written.

  Makes the folders above it. Of processes that write one path at a time, on any
  hosts, the last one wins.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.parent / f".{uuid.uuid4().hex}.partial"
  try:
    yield partial
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


def write_file(path: pathlib.Path, content: str | bytes) -> None:
  """Writes a file and the folders above it; a reader never sees a part."""
  with whole_file(path) as partial:
    partial.write_bytes(
      content.encode() if isinstance(content, str) else content
    )
