"""Where compiled programs are kept."""

import jax
import pooch
import pytest

from cops_jax.runtime.compilation import keep_compiled_programs


@pytest.mark.parametrize(
  "is_on, folder, is_set",
  (
    (True, None, True),
    (True, "named to JAX itself", False),
    (False, None, False),
  ),
)
def test_compiled_programs_are_kept_in_the_users_cache_folder(
  config, monkeypatch, is_on, folder, is_set
):
  """Unless a field switches it off, or JAX has a folder of its own."""
  found = {}
  monkeypatch.setattr(jax.config, "update", found.__setitem__)
  monkeypatch.setattr(
    type(jax.config), "jax_compilation_cache_dir", folder, raising=False
  )
  config.compilation_cache = is_on
  keep_compiled_programs(config)
  assert bool(found) == is_set
  if is_set:
    want = pooch.os_cache("cops_jax") / "compiled"
    assert found["jax_compilation_cache_dir"] == str(want)
    assert found["jax_compilation_cache_max_size"] < 10e9
