"""SHA-256 manifests: what a directory held when its writing was finished."""

from __future__ import annotations

import hashlib

from cops_jax.files import find_files, read_file, seal, sync, unseal, write_file
from cops_jax.paths import AnyPath, is_address

MANIFEST = "manifest.json"


def write_manifest(directory: AnyPath) -> None:
  """Writes the size and SHA-256 of every file in a directory into it.

  Raises:
    InputError: the manifest cannot be written.
    OSError: a file cannot be read.
  """
  names = [name for name in find_files(directory) if name != MANIFEST]
  if not is_address(directory):
    for name in names:  # They are on the disk before the manifest says so.
      sync(directory / name)
  files = {name: _describe(directory / name) for name in names}
  write_file(directory / MANIFEST, seal({"files": files}, indent=2))


def find_damage(directory: AnyPath) -> list[str]:
  """Compares a directory with its manifest.

  Args:
    directory: any directory; files that the manifest does not name are ignored.

  Returns:
    A sentence for every file that has changed, with its name, what was expected
    and what was found; empty if none has.
  """
  try:
    files = unseal(read_file(directory / MANIFEST))["files"]
    expected = {
      name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()
    }
  except OSError as error:
    return [f"{MANIFEST} cannot be read: {error.strerror}"]
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    return [f"{MANIFEST} is damaged: {error}"]
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
  content = read_file(path)
  return {
    "bytes": len(content),
    "sha256": hashlib.sha256(content).hexdigest(),
  }
