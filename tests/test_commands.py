"""How commands begin and end."""

import importlib.metadata
import os
import time

import pytest

from cops_jax.__main__ import COMMANDS
from cops_jax.commands import command_line
from cops_jax.config import recipe_names
from cops_jax.errors import InputError, needs_extra
from cops_jax.fields import FIELDS
from cops_jax.runs.checkpoints import Checkpoints
from cops_jax.runs.record import read_record
from helpers.scripts import start_afresh


def call(*arguments, folder):
  """`cops ARGUMENTS` in a folder: exit status, output, errors, CPU seconds."""
  command = ("-m", "cops_jax", *arguments)
  with start_afresh(*command, cwd=folder) as process:
    out, err = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
  return process.returncode, out, err, usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("name", ("", *COMMANDS))
def test_help_is_shown_at_once_in_any_folder(name, tmp_path):
  """In less than 0.3 s, of which other programs' share does not count."""
  arguments = [*([name] if name else []), "--help"]
  for _ in range(3):
    code, out, err, seconds = call(*arguments, folder=tmp_path)
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: cops {name or 'COMMAND'}")
    if seconds < 0.3:
      break
  assert seconds < 0.3
  words = " ".join(out.split())
  if name in ("train", "evaluate"):
    for field, row in FIELDS.items():
      comment = " ".join(row.comment.split())
      assert f"--config.{field} " in words
      assert f"{comment} Default: {row.default!r}." in words
    assert f"recipes: {', '.join(recipe_names())} " in words
  if not name:
    assert all(
      f"{command} {text}" in words for command, text in COMMANDS.items()
    )


@pytest.mark.parametrize("arguments", ([], ["no_such"], ["predict", "--no"]))
def test_a_wrong_command_is_reported_with_status_2(arguments, tmp_path):
  code, out, err, _ = call(*arguments, folder=tmp_path)
  assert (code, out) == (2, "")
  assert "cops" in err or "the commands are demo, train" in err
  assert "Traceback" not in err


def test_the_console_command_is_the_same():
  (found,) = importlib.metadata.entry_points(
    group="console_scripts", name="cops"
  )
  assert found.value == "cops_jax.__main__:main"


PRINT = """
from cops_jax.commands import command_line
command_line(lambda _: print("a line"))()
"""


@pytest.mark.parametrize("flags", ([], ["-u"]))  # At the end, and at once.
def test_closed_output_ends_a_command_without_a_message(flags):
  reader, writer = os.pipe()
  os.close(reader)
  with open(writer, "wb") as closed:
    with start_afresh(*flags, "-c", PRINT, stdout=closed) as process:
      _, err = process.communicate()
  assert (process.returncode, err) == (1, "")


def test_an_error_is_reported_in_one_sentence(tmp_path):
  """The error about a missing run names the command to use."""
  with Checkpoints(tmp_path) as saved:
    for read in (lambda: read_record(tmp_path), saved.restore_params):
      with pytest.raises(SystemExit) as ended:
        command_line(lambda _, read=read: read())([])
      assert ended.value.code.startswith(f"error: {tmp_path} h")
      assert ended.value.code.endswith(
        f" Train first: cops train --config=... --workdir={tmp_path}"
      )


def test_a_missing_package_of_an_extra_is_reported():
  with pytest.raises(
    InputError, match=r'^this .*: pip install "cops-jax\[made\]"$'
  ):
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
