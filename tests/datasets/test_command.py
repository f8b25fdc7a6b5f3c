"""cops datasets, as a user runs it."""

import logging
import subprocess
import sys

import pytest

from cops_jax.commands import datasets as command
from helpers.original_layouts import NAMES, write_tree


@pytest.fixture(autouse=True)
def quiet_afterwards():
  """Leaves logging to other tests as it was."""
  logger = logging.getLogger("cops_jax")
  before = logger.handlers, logger.level, logger.propagate
  yield
  logger.handlers, logger.level, logger.propagate = before


@pytest.fixture
def directories(tmp_path):
  return [f"--data_dir={tmp_path / 'prepared'}", f"--manual_dir={tmp_path}"]


def cells(out):
  return {line.split()[0]: line for line in out.splitlines() if line}


def test_list(tmp_path, directories, capsys):
  write_tree("btad", tmp_path)
  assert command.main(["list", *directories]) == 0
  table, _, copies = capsys.readouterr().out.partition("\n\n")
  rows = cells(table)
  assert set(rows) == {"name", *NAMES}
  assert "figshare.21221579" in copies
  assert "original files found" in rows["btad"]
  assert "can be downloaded" in rows["visa"] and "CC BY 4.0" in rows["visa"]
  assert "no original files" in rows["isic"]
  assert "https://endotect.com" in rows["endo"]


def test_check(tmp_path, directories, capsys):
  tree = write_tree("btad", tmp_path)
  assert command.main(["check", "btad", *directories]) == 0
  assert "problems: none" in capsys.readouterr().out
  (tree.root / "02/test/ok/0000.png").write_bytes(b"")
  assert (
    command.main(["check", "btad", f"folder:{tmp_path}", *directories]) == 1
  )
  out, err = capsys.readouterr()
  assert "02/test/ok/0000.png: its image cannot be read" in out
  assert "checking btad: 12/12 images" in err


def run_prepare(*arguments):
  process = subprocess.run(
    [sys.executable, "-m", "cops_jax", "datasets", "prepare", *arguments],
    capture_output=True,
    text=True,
  )
  return process.returncode, process.stdout, process.stderr


def test_prepare(tmp_path, directories, capsys):
  """Prepares what it can; the rest is reported at the end."""
  for name in ("mpdd", "kvasir", "visa"):
    write_tree(name, tmp_path)
  names = ("mpdd", "endo", "kvasir")
  code, out, err = run_prepare(*names, *directories)
  assert code == 1
  rows = cells(out)
  assert rows["mpdd"].split() == ["mpdd", "6", "30"]
  assert rows["kvasir"].split() == ["kvasir", "-", "3"]
  assert "preparing mpdd: 36/36 images" in err
  assert err.splitlines()[-1].startswith(
    "error: data set 'endo' is not prepare"
  )
  assert "Traceback" not in err
  # Again, it only reports.
  code, out, err = run_prepare("mpdd", "kvasir", *directories)
  assert (code, err) == (0, "") and cells(out) == rows
  assert command.main(["list", *directories]) == 0
  rows = cells(capsys.readouterr().out)
  assert "prepared" in rows["mpdd"] and "prepared" in rows["kvasir"]
  assert command.main(["prepare", "--all", *directories]) == 0
  rows = cells(capsys.readouterr().out)
  assert rows["visa"].split() == ["visa", "12", "24"]
  assert rows["isic:"] == "isic: no original files, see the list command"


@pytest.mark.parametrize(
  "arguments, expected",
  (
    (["prepare"], "takes names of data sets or --all"),
    (["prepare", "visa", "--all"], "takes names of data sets or --all"),
    (["prepare", "mvtec"], "unknown data set 'mvtec'; known are mvtec_ad"),
    (["check", "folder:/nowhere"], "/nowhere is not a folder"),
    (["check"], "required: NAME"),
    ([], "required: command"),
  ),
)
def test_bad_arguments_are_reported(arguments, expected, capsys):
  with pytest.raises(SystemExit) as exit:
    command.main(arguments)
  err = str(exit.value.code) + capsys.readouterr().err
  assert expected in err
  assert exit.value.code not in (0, None)
