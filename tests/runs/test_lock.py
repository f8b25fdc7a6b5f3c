"""One process at a time in a work directory."""

import signal
import sys

import filelock
import pytest

from cops_jax.errors import InputError, WriteError
from cops_jax.runs import lock
from helpers.scripts import start_afresh

HOLD = """
import sys, time
from cops_jax.runs import lock
with lock.hold(sys.argv[1], "training"):
  print("held", flush=True)
  time.sleep(600)
"""


def test_the_holder_is_named_and_its_death_frees_the_lock(tmp_path):
  with start_afresh("-c", HOLD, tmp_path) as process:
    assert process.stdout.readline() == "held\n"
    expected = f"in use for training by process {process.pid} on host"
    with pytest.raises(InputError, match=expected):
      with lock.hold(tmp_path, "training"):
        pass
    with lock.hold(tmp_path, "evaluation"):  # Another purpose.
      pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
  with lock.hold(tmp_path, "training"):
    pass
  with lock.hold(tmp_path, "training"):  # It was given back.
    pass


@pytest.mark.skipif(sys.platform == "win32", reason="has no flock")
def test_a_file_system_without_locks(tmp_path, monkeypatch):
  def refuse(self):
    raise NotImplementedError

  monkeypatch.setattr(filelock.FileLock, "_acquire", refuse)
  with lock.hold(tmp_path, "training"):
    with pytest.raises(InputError, match=r"delete .*/\.training\.lock"):
      with lock.hold(tmp_path, "training"):
        pass
  with lock.hold(tmp_path, "training"):
    pass


def test_a_file_as_workdir_is_reported(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(WriteError, match="file cannot be written"):
    with lock.hold(tmp_path / "file", "training"):
      pass
