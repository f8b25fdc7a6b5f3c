"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import pathlib
import uuid


def write_file(path: pathlib.Path, content: str | bytes) -> None:
  """Writes a file and the folders above it; a reader never sees a part.

  Of processes that write one path at a time, on any hosts, the last one wins.
  """
  if isinstance(content, str):
    content = content.encode()
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
  try:
    partial.write_bytes(content)
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)
