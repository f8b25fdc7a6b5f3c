"""Checkpoints of the parameters and the optimizer's state."""

import errno
import logging
import os
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cops_jax import files
from cops_jax.errors import InputError
from cops_jax.paths import to_path
from cops_jax.runs.checkpoints import Checkpoints, find_damage, find_steps
from cops_jax.runtime.mesh import make_mesh, replicate
from helpers.runs import flip
from helpers.scripts import environment

PARAMS = {"a": jnp.arange(3.0)}
OPT_STATE = {"count": jnp.int32(1)}


def save(workdir, *steps):
  with Checkpoints(workdir, num_kept=9) as saved:
    for step in steps:
      saved.save(step, {"a": PARAMS["a"] * step}, OPT_STATE)


@pytest.fixture
def messages(caplog, monkeypatch):
  """This project's log messages, which do not propagate by default."""
  monkeypatch.setattr(logging.getLogger("cops_jax"), "propagate", True)
  return caplog


def test_a_checkpoint_is_saved_and_restored(tmp_path):
  params = {"a": jnp.arange(3.0), "b": {"c": jnp.ones((2, 2))}}
  opt_state = ({"count": jnp.int32(5)}, jnp.full(3, 0.1))
  with Checkpoints(tmp_path, num_kept=2) as saved:
    assert saved.latest_step() is None
    for step in (1, 2, 3):
      scaled = {**params, "a": params["a"] * step}
      saved.save(step, scaled, opt_state, [{"loss": 0.1 * step}])
  with Checkpoints(tmp_path) as saved:
    assert saved.latest_step() == 3
    step, restored, state, recent_terms = saved.restore(params, opt_state)
    assert step == 3 and recent_terms == [{"loss": 0.1 * step}]
    np.testing.assert_array_equal(restored["a"], params["a"] * 3)
    np.testing.assert_array_equal(state[1], opt_state[1])
    assert int(state[0]["count"]) == 5
    step, restored = saved.restore_params(params)
    np.testing.assert_array_equal(restored["b"]["c"], params["b"]["c"])
  kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
  assert kept == ["2", "3"]


def test_arrays_can_be_donated_during_a_save(tmp_path):
  """A training step donates the memory of its state."""
  update = jax.jit(
    lambda tree: jax.tree.map(jnp.negative, tree), donate_argnums=0
  )
  params = {str(index): jnp.full(300_000, 1.0 + index) for index in range(9)}
  with Checkpoints(tmp_path, num_kept=1) as saved:
    saved.save(1, params, OPT_STATE)
    for _ in range(9):
      params = update(params)
  with Checkpoints(tmp_path) as saved:
    restored = saved.restore_params(params)[1]
  for index in range(9):
    assert (restored[str(index)] == 1.0 + index).all()


RESTORE_ON_ONE_DEVICE = """
import sys
import jax, jax.numpy as jnp
from cops_jax.runs.checkpoints import Checkpoints

assert jax.device_count() == 1
shapes = {"a": jax.ShapeDtypeStruct((3,), jnp.float32)}
with Checkpoints(sys.argv[1]) as saved:
  for template in (None, shapes, {"a": jnp.zeros(3)}):
    step, params = saved.restore_params(template)
    print(step, params["a"].tolist())
"""


def test_a_checkpoint_is_restored_on_other_devices(tmp_path):
  mesh = make_mesh()
  assert mesh.size == 8
  with Checkpoints(tmp_path, num_kept=1) as saved:
    saved.save(4, replicate(PARAMS, mesh), OPT_STATE)
  result = subprocess.run(
    [sys.executable, "-c", RESTORE_ON_ONE_DEVICE, tmp_path],
    env=environment(num_devices=1),
    capture_output=True,
    text=True,
  )
  assert result.stdout == 3 * "4 [0.0, 1.0, 2.0]\n", result.stderr


def test_a_missing_checkpoint_and_another_size_are_reported(tmp_path):
  assert find_steps(tmp_path / "nowhere") == []
  with Checkpoints(tmp_path, num_kept=1) as saved:
    with pytest.raises(InputError, match="has no checkpoint yet"):
      saved.restore_params(PARAMS)
    saved.save(1, PARAMS, OPT_STATE)
  with Checkpoints(tmp_path) as saved:
    with pytest.raises(InputError, match="cannot be restored"):
      saved.restore_params({"a": jnp.zeros(4)})


@pytest.fixture(scope="module")
def saved_dir(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("saved")
  save(workdir, 1, 2)
  return workdir


def truncate(path):
  os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("harm", (flip, truncate, os.remove))
def test_damage_to_any_file_is_found(saved_dir, tmp_path, harm):
  workdir = shutil.copytree(saved_dir, tmp_path / "run")
  newest = workdir / "checkpoints" / "2"
  paths = [path for path in newest.rglob("*") if path.is_file()]
  assert len(paths) > 10
  for path in paths:
    content = path.read_bytes()
    harm(path)
    damage = find_damage(workdir)
    assert damage[1] == []
    if path.exists() or path.name != "manifest.json":
      (sentence,) = damage[2]
      assert sentence.startswith(path.relative_to(newest).as_posix())
    else:  # Without its manifest, the save counts as interrupted.
      assert 2 not in damage
    path.write_bytes(content)
  assert find_damage(workdir) == {1: [], 2: []}


@pytest.mark.parametrize(
  "content",
  ("{", "[" * 100_000, files.seal({}), files.seal({"files": 1})),
)
def test_a_damaged_manifest_is_refused(tmp_path, content):
  files.write_file(tmp_path / "checkpoints/1/manifest.json", content)
  ((damage,),) = find_damage(tmp_path).values()
  assert damage.startswith("manifest.json is damaged: ")


@pytest.mark.parametrize("place", ("disk", "bucket"))
def test_the_newest_undamaged_step_is_used(
  saved_dir, tmp_path, messages, place, request
):
  """The test also checks that files of an interrupted process are deleted."""
  workdir = tmp_path / "run"
  if place == "bucket":
    workdir = to_path(f"{request.getfixturevalue('bucket')}/run")
  directory = workdir / "checkpoints"
  for name in files.find_files(saved_dir):
    files.write_file(workdir / name, (saved_dir / name).read_bytes())

  def names():
    return {name.split("/")[0] for name in files.find_files(directory)}

  flip(directory / "2" / "params" / "_METADATA")
  with Checkpoints(workdir) as saved:  # Only reads, as evaluation does.
    step, params = saved.restore_params()
    assert step == 1
    np.testing.assert_array_equal(params["a"], PARAMS["a"])
  assert (
    f"skipping the damaged checkpoint {directory}/2: params/_METADATA has"
    in (messages.text)
  )
  assert names() == {"1", "2"}
  # A deletion, a save and a save without its manifest were interrupted.
  for name in ("0/_METADATA", "3.orbax-checkpoint-tmp/a", "4/_METADATA"):
    files.write_file(directory / name, "{}")
  files.write_file(directory / "2.damaged" / "a", "")
  with Checkpoints(workdir, num_kept=2) as saved:  # Writes, as training does.
    assert names() == {"1", "2", "2.damaged"}
    assert saved.restore(PARAMS, OPT_STATE)[0] == 1
    assert "/2 to 2.damaged" in messages.text
    for step in (2, 3):
      saved.save(step, PARAMS, OPT_STATE)
  assert names() == {"2", "3", "2.damaged"}
  assert find_damage(workdir) == {2: [], 3: []}


def test_damage_to_every_checkpoint_is_an_error(saved_dir, tmp_path):
  workdir = shutil.copytree(saved_dir, tmp_path / "run")
  for step in (1, 2):
    flip(workdir / "checkpoints" / str(step) / "_CHECKPOINT_METADATA")
  with Checkpoints(workdir, num_kept=1) as saved:
    with pytest.raises(InputError, match="every checkpoint in .* is damaged"):
      saved.restore(PARAMS, OPT_STATE)
  assert sorted(os.listdir(workdir / "checkpoints")) == ["1", "2"]


@pytest.mark.parametrize(
  "place",
  (
    "os.posix_fallocate",
    "orbax.checkpoint.CheckpointManager.save",
    "cops_jax.runs.checkpoints.write_file",
  ),
)
def test_a_full_disk_keeps_the_last_checkpoint(
  saved_dir, tmp_path, monkeypatch, place
):
  def fail(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  workdir = shutil.copytree(saved_dir, tmp_path / "run")
  with Checkpoints(workdir, num_kept=1) as saved:
    with monkeypatch.context() as patched:
      patched.setattr(place, fail)
      with pytest.raises(InputError, match="No space left on device. Earlier"):
        saved.save(3, PARAMS, OPT_STATE)
        while True:  # Checks without waiting, as training does.
          saved.check()
          time.sleep(0.01)
  assert find_steps(workdir) == [1, 2]
  with Checkpoints(workdir, num_kept=1) as saved:
    assert saved.restore(PARAMS, OPT_STATE)[0] == 2
    saved.save(3, PARAMS, OPT_STATE)
  assert os.listdir(workdir / "checkpoints") == ["3"]
