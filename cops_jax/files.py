"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import pathlib


def write_file(path: pathlib.Path, content: str | bytes) -> None:
  """Writes a file and the folders above it; a reader never sees a part."""
  if isinstance(content, str):
    content = content.encode()
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f".{path.name}.partial")
  partial.write_bytes(content)
  os.replace(partial, path)
