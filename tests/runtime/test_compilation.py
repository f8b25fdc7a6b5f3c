"""Where compiled programs are kept."""

import jax
import pooch
import pytest

from cops_jax.runtime.compilation import keep_compiled_programs


@pytest.fixture
def kept(monkeypatch):
  """What is set in JAX's config."""
  found = {}
  monkeypatch.setattr(jax.config, "update", found.__setitem__)
  return found


def test_in_the_users_cache_folder(config, kept, monkeypatch):
  monkeypatch.setattr(
    type(jax.config), "jax_compilation_cache_dir", None, raising=False
  )
  keep_compiled_programs(config)
  want = pooch.os_cache("cops_jax") / "compiled"
  assert kept["jax_compilation_cache_dir"] == str(want)
  assert kept["jax_compilation_cache_max_size"] < 10e9


def test_a_folder_named_to_jax_stays(config, kept):
  assert jax.config.jax_compilation_cache_dir  # The tests' own.
  keep_compiled_programs(config)
  assert not kept


def test_a_field_switches_it_off(config, kept, monkeypatch):
  monkeypatch.setattr(
    type(jax.config), "jax_compilation_cache_dir", None, raising=False
  )
  config.compilation_cache = False
  keep_compiled_programs(config)
  assert not kept
