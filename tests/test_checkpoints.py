"""Work directories: whose they are, and what is in them."""

import jax.numpy as jnp
import numpy as np
import pytest

from cops_jax.checkpoints import Checkpoints, check_config, claim_workdir
from cops_jax.errors import InputError

CONFIG = {
  "seed": 0,
  "data_dir": "",
  "model": {"temperature": 0.07, "feature_layers": (24,)},
  "train": {"learning_rate": 1e-3, "log_every_steps": 20},
  "evaluation": {"beta": 0.9},
}


def changed(section, name, value):
  return {**CONFIG, section: {**CONFIG[section], name: value}}


def test_a_workdir_can_be_claimed_again(tmp_path):
  claim_workdir(tmp_path, CONFIG)
  claim_workdir(tmp_path, CONFIG)
  claim_workdir(tmp_path, changed("evaluation", "beta", 1.0))
  claim_workdir(tmp_path, changed("train", "log_every_steps", 1))
  claim_workdir(tmp_path, {**CONFIG, "data_dir": "elsewhere"})


def test_another_config_is_refused_and_the_first_kept(tmp_path):
  claim_workdir(tmp_path, CONFIG)
  before = (tmp_path / "config.json").read_text()
  with pytest.raises(InputError, match=r"train\.learning_rate is 0\.001 there"):
    claim_workdir(tmp_path, changed("train", "learning_rate", 1e-4))
  assert (tmp_path / "config.json").read_text() == before


def test_only_the_asked_sections_are_compared(tmp_path):
  claim_workdir(tmp_path, CONFIG)
  other = changed("train", "learning_rate", 1e-4)
  check_config(tmp_path, other, sections=("model",))
  other = changed("model", "temperature", 0.1)
  with pytest.raises(InputError, match=r"model\.temperature is 0\.07 there"):
    check_config(tmp_path, other, sections=("model",))


def test_no_run(tmp_path):
  with pytest.raises(InputError, match="holds no training run"):
    check_config(tmp_path / "nowhere", CONFIG, sections=("model",))
  assert not (tmp_path / "nowhere").exists()


def test_a_file_is_no_workdir(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="cannot write in --workdir=.*/file"):
    claim_workdir(tmp_path / "file", CONFIG)


def test_damaged_config(tmp_path):
  (tmp_path / "config.json").write_text('{"seed": 0')
  with pytest.raises(InputError, match="config.json is damaged"):
    claim_workdir(tmp_path, CONFIG)


def test_round_trip(tmp_path):
  params = {"a": jnp.arange(3.0), "b": {"c": jnp.ones((2, 2))}}
  opt_state = ({"count": jnp.int32(5)}, jnp.full(3, 0.1))
  with Checkpoints(tmp_path, num_kept=2) as saved:
    assert saved.latest_step() is None
    for step in (1, 2, 3):
      scaled = {**params, "a": params["a"] * step}
      saved.save(step, scaled, opt_state)
  with Checkpoints(tmp_path) as saved:
    assert saved.latest_step() == 3
    step, restored, state = saved.restore(params, opt_state)
    assert step == 3
    np.testing.assert_array_equal(restored["a"], params["a"] * 3)
    np.testing.assert_array_equal(state[1], opt_state[1])
    assert int(state[0]["count"]) == 5
    step, restored = saved.restore_params(params)
    np.testing.assert_array_equal(restored["b"]["c"], params["b"]["c"])
  kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
  assert kept == ["2", "3"]


def test_missing_checkpoint(tmp_path):
  claim_workdir(tmp_path, CONFIG)
  with Checkpoints(tmp_path) as saved:
    with pytest.raises(InputError, match="has no checkpoint yet"):
      saved.restore_params({"a": jnp.zeros(3)})


def test_checkpoint_of_another_size(tmp_path):
  with Checkpoints(tmp_path, num_kept=1) as saved:
    saved.save(1, {"a": jnp.zeros(3)}, {"count": jnp.int32(1)})
  with Checkpoints(tmp_path) as saved:
    with pytest.raises(InputError, match="cannot be restored"):
      saved.restore_params({"a": jnp.zeros(4)})
