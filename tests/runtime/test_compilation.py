"""The cache of compiled programs."""

import jax
import pooch
import pytest

from cops_jax.runtime.compilation import keep_compiled_programs


@pytest.mark.parametrize(
  "is_on, folder, is_read_only",
  (
    (True, None, False),
    (True, "set in JAX", False),
    (False, None, False),
    (True, None, True),
  ),
)
def test_compiled_programs_are_stored_in_the_users_cache_folder(
  config, monkeypatch, tmp_path, is_on, folder, is_read_only
):
  """Exceptions: a field disables it, JAX has a folder, or it is read-only."""
  found = {}
  monkeypatch.setattr(jax.config, "update", found.__setitem__)
  monkeypatch.setattr(
    type(jax.config), "jax_compilation_cache_dir", folder, raising=False
  )
  (tmp_path / "file").write_bytes(b"")
  cache = tmp_path / ("file" if is_read_only else "cache")
  monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
  config.compilation_cache = is_on
  keep_compiled_programs(config)
  want = str(pooch.os_cache("cops_jax") / "compiled")
  want = want if is_on and not folder and not is_read_only else None
  assert found.get("jax_compilation_cache_dir") == want
