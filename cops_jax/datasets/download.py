"""Downloads of original files, for data sets that need no form."""

from __future__ import annotations

import dataclasses
import logging
import os
import pathlib
import shutil
import tarfile

from cops_jax.errors import InputError

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Archive:
  """A download that needs no form.

  Attributes:
    url: of a tar file of the data set's root.
    sha256: of that file.
  """

  url: str
  sha256: str


def download(archive: Archive, root: pathlib.Path) -> pathlib.Path:
  """Fetches and unpacks an archive, unless that has been done before.

  Args:
    archive: a tar file whose root is the data set's.
    root: where to unpack it; complete once it exists.

  Returns:
    The root.

  Raises:
    InputError: no connection, no space, or another file than expected.
  """
  if root.is_dir():
    return root
  import pooch

  partial = root.with_name(f".{root.name}.partial")
  try:
    root.parent.mkdir(parents=True, exist_ok=True)
    pooch.get_logger().setLevel(logging.WARNING)  # It would log the same.
    _logger.info("downloading %s to %s", archive.url, root)
    file = pooch.retrieve(
      archive.url,
      known_hash=f"sha256:{archive.sha256}",
      path=root.parent,
      fname=archive.url.rpartition("/")[2],
      progressbar=True,
    )
    _logger.info("unpacking %s", file)
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(file) as tar:
      tar.extractall(partial, filter="data")
    inside = list(partial.iterdir())
    # The root itself, or one folder that is the root.
    os.replace(inside[0] if len(inside) == 1 else partial, root)
    shutil.rmtree(partial, ignore_errors=True)
    os.remove(file)
  except (OSError, ValueError, tarfile.TarError) as error:
    raise InputError(
      f"cannot download {archive.url} to {root}: {error}. Get it by other means"
      f" and unpack it as {root}."
    ) from error
  return root
