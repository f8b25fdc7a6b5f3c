"""SHA-256 manifests: what a directory held when its writing was finished."""

from __future__ import annotations

from cops_jax.files import (
  digest_file,
  find_files,
  read_file,
  seal,
  sync,
  unseal,
  write_file,
)
from cops_jax.paths import AnyPath, is_address

MANIFEST = "manifest.json"


def write_manifest(directory: AnyPath) -> None:
  """Writes the SHA-256 of every file in a directory into it.

  Raises:
    InputError: the manifest cannot be written.
    OSError: a file cannot be read.
  """
  names = [name for name in find_files(directory) if name != MANIFEST]
  if not is_address(directory):
    for name in names:  # They are on the disk before the manifest says so.
      sync(directory / name)
  files = {name: digest_file(read_file(directory / name)) for name in names}
  write_file(directory / MANIFEST, seal({"files": files}, indent=2))


def find_damage(directory: AnyPath) -> list[str]:
  """Compares a directory with its manifest.

  Args:
    directory: any directory; files that the manifest does not name are ignored.

  Returns:
    A sentence for every file that has changed; empty if none has.
  """
  try:
    expected = dict(unseal(read_file(directory / MANIFEST))["files"])
  except OSError as error:
    return [f"{MANIFEST} cannot be read: {error.strerror}"]
  except (ValueError, TypeError, KeyError) as error:
    return [f"{MANIFEST} is damaged: {error}"]
  damage = []
  for name, sha256 in expected.items():
    try:
      found = digest_file(read_file(directory / name))
    except OSError as error:
      damage.append(f"{name} cannot be read: {error.strerror}")
      continue
    if found != sha256:
      damage.append(f"{name} has the SHA-256 {found} instead of {sha256}")
  return damage
