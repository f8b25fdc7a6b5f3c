"""The lock of a run directory."""

import json
import os
import subprocess
import sys

import filelock
import pytest

from cops_jax import files
from cops_jax.errors import InputError, WriteError
from cops_jax.runs import lock
from helpers.scripts import environment

HOLD_AND_DIE = """
import os, signal, sys
import filelock
from cops_jax.runs import lock

def refuse(self):
  raise NotImplementedError

if "without-locks" in sys.argv[1]:
  filelock.FileLock._acquire = refuse
with lock.hold(sys.argv[1], "training"):
  os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(params=("disk", "without-locks", "bucket"))
def workdir(request, tmp_path, monkeypatch):
  """Run directory on a disk with locks, without locks, and in a bucket."""
  if request.param == "bucket":
    return f"{request.getfixturevalue('bucket')}/run"
  if request.param == "without-locks":
    if sys.platform == "win32":
      pytest.skip("has no flock")

    def refuse(self):
      raise NotImplementedError

    monkeypatch.setattr(filelock.FileLock, "_acquire", refuse)
  return str(tmp_path / request.param)


def test_a_second_process_is_refused_until_the_first_ends(workdir):
  expected = f"in use for training by process {os.getpid()} on host"
  with lock.hold(workdir, "training"):
    for _ in range(2):
      with pytest.raises(InputError, match=expected) as caught:
        with lock.hold(workdir, "training"):
          pass
    with lock.hold(workdir, "evaluation"):  # This purpose has its own lock.
      pass
  is_system_lock = workdir.endswith("disk")
  advice = (
    "Wait for that process"
    if is_system_lock
    else f"rm {workdir}/.training.held"
  )
  assert advice in str(caught.value)
  with lock.hold(workdir, "training"):
    pass


def test_a_killed_process_releases_the_lock(workdir):
  command = [sys.executable, "-c", HOLD_AND_DIE, workdir]
  code = subprocess.run(command, env=environment(), timeout=120).returncode
  assert code == -9
  with lock.hold(workdir, "training"):
    pass


def test_only_the_same_job_takes_over_from_another_machine(bucket, monkeypatch):
  """Processes of another job cannot know whether the holder has ended."""
  holder = {"process": 1, "host": "a", "since": "then", "machine": "a"}
  held = f"{bucket}/run/.training.held"
  odd = json.dumps({"process": "a", "machine": lock._machine()}).encode()
  named = json.dumps({**holder, "job": "x"}).encode()
  for content in (b"", b"[" * 10**5, odd, named):
    files.write_file(held, content)
    for job in ("", "y"):
      monkeypatch.setenv("COPS_JAX_JOB", job)
      with pytest.raises(InputError, match="in use for training by"):
        with lock.hold(f"{bucket}/run", "training"):
          pass
  monkeypatch.setenv("COPS_JAX_JOB", "x")
  with lock.hold(f"{bucket}/run", "training"):
    assert json.loads(files.read_file(held))["process"] == os.getpid()
  assert not files.exists(held)


def test_an_unwritable_workdir_is_reported(tmp_path, server):
  (tmp_path / "file").write_text("")
  for workdir, reason in (
    (tmp_path / "file", "File exists"),
    ("gs://no-such-bucket/run", "the bucket does not exist"),
  ):
    with pytest.raises(WriteError, match=f"cannot be written: {reason}"):
      with lock.hold(workdir, "training"):
        pass
