"""Where compiled programs are kept."""

import jax
import pooch
import pytest

from cops_jax.runtime.compilation import keep_compiled_programs


@pytest.mark.parametrize(
  "is_on, folder", ((True, None), (True, "named to JAX itself"), (False, None))
)
def test_compiled_programs_are_kept_in_the_users_cache_folder(
  config, monkeypatch, is_on, folder
):
  """Unless a field switches it off, or JAX has a folder of its own."""
  found = {}
  monkeypatch.setattr(jax.config, "update", found.__setitem__)
  monkeypatch.setattr(
    type(jax.config), "jax_compilation_cache_dir", folder, raising=False
  )
  config.compilation_cache = is_on
  keep_compiled_programs(config)
  want = str(pooch.os_cache("cops_jax") / "compiled")
  want = want if is_on and not folder else None
  assert found.get("jax_compilation_cache_dir") == want
