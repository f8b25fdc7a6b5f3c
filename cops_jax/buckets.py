"""Files in object storage, by fsspec.

There are no folders, only names with slashes in them: a folder is there as long
as a file is below it. A file appears when all of it has been sent. Requests are
repeated for about half a minute while the server cannot answer. Every error is
an OSError with a reason and the address, as the system's are.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import importlib
import logging
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from cops_jax.errors import needs_extra, shorten
from cops_jax.paths import SCHEMES, to_path

_NO_CREDENTIALS = (
  "there are no credentials for it, or they are no longer valid: run gcloud"
  " auth application-default login, or name a service account's key file in"
  " GOOGLE_APPLICATION_CREDENTIALS"
)
_FORBIDDEN = (
  "the account that this program runs as may not do that in this bucket"
)


class File(NamedTuple):
  """What the server says of a file.

  Attributes:
    size: in bytes.
    checksum: the CRC32C, in base64; "" if the server does not tell.
  """

  size: int
  checksum: str


def read(address: str | os.PathLike) -> bytes:
  """A file's content.

  Raises:
    OSError: it cannot be read.
  """
  with _system_errors(address) as (files, name):
    return files.cat_file(name)


def write(
  address: str | os.PathLike, content: bytes, must_be_new: bool = False
) -> None:
  """Writes a file.

  Args:
    address: of the file.
    content: of the file.
    must_be_new: whether to fail where there is one, however many try at once.

  Raises:
    FileExistsError: it is there, and was to be new.
    OSError: it cannot be written.
  """
  mode = "create" if must_be_new else "overwrite"
  with _system_errors(address, is_writing=True) as (files, name):
    files.pipe_file(name, content, mode=mode, **_checked(name))


def upload(path: pathlib.Path, address: str | os.PathLike) -> None:
  """Writes a file with the content of a local one.

  Raises:
    OSError: it cannot be written.
  """
  with _system_errors(address, is_writing=True) as (files, name):
    files.put_file(str(path), name, **_checked(name))


def download(
  address: str | os.PathLike,
  path: pathlib.Path,
  file: File,
  count: Callable[[int], None] = lambda number: None,
) -> None:
  """Writes a local file with the content of one.

  Args:
    address: of the file.
    path: to write to.
    file: what the server says of it.
    count: called with numbers of bytes as they come.

  Raises:
    OSError: it cannot be read or written, or is not what the server says.
  """
  from fsspec.callbacks import Callback

  class Count(Callback):
    def relative_update(self, inc=1):
      count(inc)

  with _system_errors(address) as (files, name):
    files.get_file(name, str(path), callback=Count())
    found = File(path.stat().st_size, file.checksum and compute_checksum(path))
    if found != file:
      raise OSError(f"{found} was received, and the server has {file}")


def compute_checksum(path: pathlib.Path) -> str:
  """The checksum of a local file as `File` has it."""
  import google_crc32c

  checksum = google_crc32c.Checksum()
  with path.open("rb") as file:
    while chunk := file.read(1 << 20):
      checksum.update(chunk)
  return base64.b64encode(checksum.digest()).decode()


def kind(address: str | os.PathLike) -> str:
  """What is there: "file", "directory" or, if nothing is, "".

  Raises:
    OSError: the server does not say.
  """
  with _system_errors(address) as (files, name):
    try:
      return files.info(name)["type"]
    except FileNotFoundError:
      return ""


def find_files(address: str | os.PathLike) -> dict[str, File]:
  """All files below a folder by their names from there on; or one file, as "".

  Raises:
    OSError: the server does not say.
  """
  with _system_errors(address) as (files, name):
    try:
      found = files.find(name, detail=True)
    except FileNotFoundError:
      return {}
    root = name.partition("://")[2].rstrip("/")
    return {
      path.removeprefix(root).removeprefix("/"): File(
        int(facts["size"]), facts.get("crc32c", "")
      )
      for path, facts in sorted(found.items())
      if not path.endswith("/")  # Empty files that stand for folders.
    }


def rename(address: str | os.PathLike, to: str | os.PathLike) -> None:
  """Copies all files below a folder, in the bucket, and then deletes them.

  Raises:
    OSError: that is not allowed, or the server does not answer.
  """
  with _system_errors(address, is_writing=True) as (files, name):
    for below in find_files(address):
      files.cp_file(f"{name}/{below}", f"{os.fspath(to)}/{below}")
  delete(address)


def delete(address: str | os.PathLike) -> None:
  """Deletes a file, or all files below a folder; there may be none.

  Raises:
    OSError: that is not allowed, or the server does not answer.
  """
  with _system_errors(address, is_writing=True) as (files, name):
    with contextlib.suppress(FileNotFoundError):
      files.rm(name, recursive=True)


def _checked(address):
  """Asks gcsfs to compare what has arrived; others do so by themselves."""
  return {"consistency": "md5"} if address.startswith("gs:") else {}


@functools.cache
def _filesystem(scheme):
  import fsspec

  if scheme == "gs":
    # Else gcsfs says at every start that it looks for a kind of bucket that
    # few have. What goes wrong is logged besides being raised.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    for name in ("gcsfs", "google.auth"):
      logging.getLogger(name).setLevel(logging.CRITICAL)
  extra, package = SCHEMES[scheme]
  with needs_extra(f"{scheme}:// addresses", extra, package):
    importlib.import_module(package)
  # Without the cache, as other processes write too.
  return fsspec.filesystem(scheme, use_listings_cache=False)


@contextlib.contextmanager
def _system_errors(address, is_writing=False) -> Iterator[tuple[Any, str]]:
  """Gives the file system and the address; turns errors into the system's."""
  address = os.fspath(to_path(address))
  files = _filesystem(address.partition(":")[0])
  try:
    yield files, address
  except FileExistsError as error:
    raise FileExistsError(
      errno.EEXIST, os.strerror(errno.EEXIST), address
    ) from error
  except FileNotFoundError as error:
    if is_writing:
      reason = "the bucket does not exist"
      raise OSError(errno.EIO, reason, address) from error
    raise FileNotFoundError(
      errno.ENOENT, os.strerror(errno.ENOENT), address
    ) from error
  except Exception as error:  # Clients raise many kinds.
    raise OSError(errno.EIO, _explain(error), address) from error


def _explain(error):
  text, code = str(error), str(getattr(error, "code", ""))
  if code == "401" or type(error).__module__.startswith("google.auth"):
    return f"{_NO_CREDENTIALS} ({shorten(text)})"
  if code == "403" or text.startswith("Forbidden"):
    return f"{_FORBIDDEN} ({shorten(' '.join(text.split()))})"
  return shorten(error)
