"""How commands end."""

import os
import subprocess
import sys
import time

import pytest

from cops_jax.commands import command_line
from cops_jax.errors import InputError, needs_extra
from cops_jax.runs.checkpoints import Checkpoints
from cops_jax.runs.record import read_record
from cops_jax.weights import DEMO_FOLDER
from helpers.scripts import ROOT, environment, start_afresh


def test_closed_output_ends_a_command_without_a_message():
  for flags in ([], ["-u"]):  # Noticed at the end, and at once.
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as closed:
      result = subprocess.run(
        [
          *(sys.executable, *flags, "-m", "cops_jax.weights", "inspect"),
          DEMO_FOLDER / "model.safetensors",
        ],
        stdout=closed,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=environment(),
        text=True,
      )
    assert (result.returncode, result.stderr) == (1, "")


def test_a_command_says_how_to_get_a_run(tmp_path):
  """What reads a run knows of no command; the command adds the one to use."""
  with Checkpoints(tmp_path) as saved:
    for read in (lambda: read_record(tmp_path), saved.restore_params):
      with pytest.raises(InputError) as error:
        read()
      assert "--" not in str(error.value)
      with pytest.raises(SystemExit) as ended:
        command_line(lambda _, read=read: read())()
      assert ended.value.code == (
        f"error: {error.value} Train first: python train.py --config=..."
        f" --workdir={tmp_path}"
      )


def test_a_missing_package_of_an_extra_is_reported():
  with pytest.raises(InputError, match=r"^this needs .*: pip .*'\.\[made\]'$"):
    with needs_extra("this", "made", "no_such_package"):
      import no_such_package.inner  # noqa: F401
  with pytest.raises(ModuleNotFoundError):
    with needs_extra("this", "made", "another"):
      import no_such_package  # noqa: F401


STUCK = """
import threading, time
from cops_jax import commands
from cops_jax.errors import InputError

commands._EXIT_SECONDS = 1

@commands.command_line
def main(arguments):
  threading.Thread(target=time.sleep, args=[60]).start()
  raise InputError("the server has gone")

main()
"""


def test_threads_that_wait_for_a_server_do_not_hold_up_the_end():
  began = time.monotonic()
  with start_afresh("-c", STUCK) as process:
    _, err = process.communicate(timeout=50)
  assert process.returncode == 1 and err == "error: the server has gone\n"
  assert time.monotonic() - began < 30
