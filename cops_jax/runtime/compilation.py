"""The cache of compiled programs on disk."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import jax

_MAX_BYTES = 4 * 2**30


def keep_compiled_programs(config: Any) -> None:
  """Makes JAX store compiled programs in the user's cache folder.

  Call it before anything is compiled. It keeps a folder that is set in JAX, for
  example by JAX_COMPILATION_CACHE_DIR, and does not use a folder that it cannot
  write to.
  """
  if not config.compilation_cache or jax.config.jax_compilation_cache_dir:
    return
  import pooch

  folder = pooch.os_cache("cops_jax") / "compiled"
  with contextlib.suppress(OSError):  # Each start then compiles its programs.
    folder.mkdir(parents=True, exist_ok=True)
  if os.access(folder, os.W_OK):
    jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)
    jax.config.update("jax_compilation_cache_dir", str(folder))
