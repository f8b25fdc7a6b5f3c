"""SHA-256 manifests: what a directory held when its writing was finished."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from cops_jax.files import find_files, read_file, sync, write_file
from cops_jax.paths import AnyPath, is_address

MANIFEST = "manifest.json"


def write_manifest(directory: AnyPath) -> None:
  """Writes the size and SHA-256 of every file in a directory into it.

  Raises:
    InputError: the manifest cannot be written.
    OSError: a file cannot be read.
  """
  if not is_address(directory):
    for path in directory.rglob("*"):
      sync(path)  # What the manifest promises is on the disk before it.
  files = {
    name: _describe(directory / name)
    for name in find_files(directory)
    if name != MANIFEST
  }
  write_file(directory / MANIFEST, _to_text(files))


def find_damage(directory: AnyPath) -> list[str]:
  """What is wrong with a directory that has a manifest.

  Args:
    directory: anything; files that the manifest does not name are ignored.

  Returns:
    A sentence for every file that is not as it was, naming it, what was
    expected and what was found; empty if all are.
  """
  path = directory / MANIFEST
  try:
    text = read_file(path)
    files = json.loads(text)["files"]
    # Every byte of the manifest is checked: it is what its content is written
    # as, and its content has its digest in it.
    if _to_text(files).encode() != text:
      raise ValueError("its own SHA-256 does not fit its content")
    expected = {
      name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()
    }
  except OSError as error:
    return [f"{MANIFEST} cannot be read: {error.strerror}"]
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    return [f"{MANIFEST} is damaged: {error}"]
  except RecursionError:
    return [f"{MANIFEST} is damaged: it is nested too deeply"]
  damage = []
  for name, (size, digest) in expected.items():
    try:
      found = _describe(directory / name)
    except OSError as error:
      damage.append(f"{name} cannot be read: {error.strerror}")
      continue
    if found["bytes"] != size:
      damage.append(f"{name} has {found['bytes']} bytes instead of {size}")
    elif found["sha256"] != digest:
      damage.append(
        f"{name} has the SHA-256 {found['sha256']} instead of {digest}"
      )
  return damage


def _describe(path):
  if is_address(path):
    content = read_file(path)
    digest = hashlib.sha256(content).hexdigest()
    return {"bytes": len(content), "sha256": digest}
  with path.open("rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": file.tell(), "sha256": digest}


def _to_text(files: Mapping[str, Any]) -> str:
  digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
  return json.dumps({"files": files, "sha256": digest}, indent=2) + "\n"
