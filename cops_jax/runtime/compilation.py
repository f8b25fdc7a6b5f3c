"""Compiled programs, kept from one start to the next."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import jax

_MAX_BYTES = 4 * 2**30


def keep_compiled_programs(config: Any) -> None:
  """From now on JAX keeps compiled programs in the user's cache folder.

  To be called before anything is compiled. A folder that was named to JAX
  itself, as JAX_COMPILATION_CACHE_DIR does, stays. A folder that cannot be
  written is not used.

  Args:
    config: a ConfigDict with the fields of `cops_jax.config`.
  """
  if not config.compilation_cache or jax.config.jax_compilation_cache_dir:
    return
  import pooch

  folder = pooch.os_cache("cops_jax") / "compiled"
  with contextlib.suppress(OSError):  # Programs are then compiled every time.
    folder.mkdir(parents=True, exist_ok=True)
  if os.access(folder, os.W_OK):
    jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)
    jax.config.update("jax_compilation_cache_dir", str(folder))
