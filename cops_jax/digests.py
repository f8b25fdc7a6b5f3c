"""What tells examples, and so data sets, from others: their digests."""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from cops_jax.files import digest_file

_MAX_SHOWN = 3


def file_state(file: bytes | pathlib.Path) -> str:
  """Size and time of a file, without reading it; `digest_file` of bytes."""
  if isinstance(file, bytes):
    return digest_file(file)
  try:
    stat = os.stat(file)
  except OSError:
    return "unreadable"
  return f"{stat.st_size} {stat.st_mtime_ns}"


def digest_example(example: Mapping[str, Any], image: str, mask: str) -> str:
  """A digest of what an example says, of 16 hexadecimal digits.

  Args:
    example: from `datasets.load`.
    image, mask: what tells its two files from others.
  """
  # Of each fact by itself, so that none can pass for the end of another.
  parts = (
    _digest(str(example["id"])),
    *(
      _digest_again(str(example[name])) for name in ("category", "anomaly_kind")
    ),
    *(_digest_again(str(int(example[name]))) for name in ("label", "has_mask")),
    *(_digest(image), _digest(mask)),
  )
  return _digest("".join(parts))[:16]


def combine(digests: Mapping[str, str]) -> str:
  """One SHA-256 of all examples' digests, by id, whatever their order."""
  return _digest(
    "".join(f"{digest} {name}\n" for name, digest in sorted(digests.items()))
  )


def describe_difference(
  before: Mapping[str, str], now: Mapping[str, str]
) -> str:
  """How two data sets differ, in words: numbers and some ids."""
  kinds = {
    "added": sorted(now.keys() - before.keys()),
    "gone": sorted(before.keys() - now.keys()),
    "changed": sorted(
      name for name in before.keys() & now.keys() if before[name] != now[name]
    ),
  }
  parts = []
  for kind, names in kinds.items():
    if names:
      more = ", ..." if len(names) > _MAX_SHOWN else ""
      parts.append(
        f"{len(names)} {kind} ({', '.join(names[:_MAX_SHOWN])}{more})"
      )
  return "; ".join(parts)


def _digest(fact):
  return hashlib.sha256(_encode(fact)).hexdigest()


_digest_again = functools.lru_cache(1024)(_digest)  # Of what many share.


def _encode(text):
  """Names of files may hold bytes that are not UTF-8."""
  return text.encode(errors="backslashreplace")
