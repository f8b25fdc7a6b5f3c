"""Help, usage errors and exit statuses of commands."""

import importlib.metadata
import logging
import os
import shutil
import subprocess
import sys
import time
import types

import pytest

from cops_jax.__main__ import COMMANDS, main
from cops_jax.commands import command_line, flags, make_parser
from cops_jax.config import recipe_names
from cops_jax.datasets.preparation import prepare
from cops_jax.errors import InputError, needs_extra
from cops_jax.evaluation.results import Evaluated
from cops_jax.fields import FIELDS
from cops_jax.runs.checkpoints import Checkpoints
from cops_jax.runs.record import read_record
from helpers.scripts import call as script
from helpers.scripts import start_afresh

# Calls the completion script's function as the shell does.
COMPLETE = """
complete_last() {
  COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
  _shtab_cops cops "${@: -1}" "${@: -2:1}"
  echo "${COMPREPLY[@]}"
}
complete_last cops pred
complete_last cops datasets prep
complete_last cops datasets prepare --man
"""


def call(*arguments, folder):
  """Runs `cops ARGUMENTS` in a folder.

  Returns:
    Exit status, output, errors and CPU seconds.
  """
  command = ("-m", "cops_jax", *arguments)
  with start_afresh(*command, cwd=folder) as process:
    out, err = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
  return process.returncode, out, err, usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("name", ("", *COMMANDS))
def test_help_is_fast_in_every_folder(name, tmp_path):
  """The limit is 0.3 s of CPU time, which other programs do not affect."""
  arguments = [*([name] if name else []), "--help"]
  for _ in range(3):
    code, out, err, seconds = call(*arguments, folder=tmp_path)
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: cops {name or 'COMMAND'}")
    if seconds < 0.3:
      break
  assert seconds < 0.3
  words = " ".join(out.split()).replace("- ", "-")  # Undoes the line breaks.
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


@pytest.mark.parametrize(
  "line, expected",
  (
    ("", "usage: cops COMMAND"),
    ("predcit", "'predcit' is not a command (did you mean predict?); the comm"),
    ("train --workdr=x", "required: --workdir; --workdr (did you mean --workd"),
    ("train --workdir=x --config.modl.num_heads=8", "an --config.model.num_he"),
    ("train --workdir=x", "--config is missing; the recipes are ablations, an"),
    ("train --workdir=x --config=vsia", "is not a recipe (did you mean visa?)"),
    ("datasets check visa --deap", "arguments: --deap (did you mean --deep or"),
    ("datasets prepare vsia", "unknown data set 'vsia' (did you mean visa"),
    ("export --workdir=x --out=demo.pth", "demo.pth ends in '.pth': use .cops"),
    ("export --workdir=x --out=new.cops/", "new.cops/ is a folder: name a fil"),
    ("export --workdir=x --out=.", ". is a folder: name a file, such as model"),
    ("export --workdir=x --out=--", "--out=-- has no value"),
    ("train --workdir=x --config.seed=--", "--config.seed=-- has no value"),
    ("predict x --clip=demo --tiles=3", "tiles are '3', expected auto or rows"),
    ("calibrate --workdir=x --data=visa --false_alarms=1.5", "rms is 1.5; exp"),
  ),
)
def test_wrong_usage_ends_with_status_2_and_suggests_names(
  line, expected, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "argv", ["cops"])
  with pytest.raises(SystemExit, match="^2$"):
    sys.exit(main(line.split()))
  out, err = capsys.readouterr()
  assert not out and expected in err
  assert not list(tmp_path.iterdir())


def test_the_cache_lists_and_removes_stored_data(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  repository = tmp_path / "hub" / "models--own--clip"
  folders = {
    "visa": tmp_path / "data" / "visa",
    "features": tmp_path / "data" / "features",
    "compiled": tmp_path / "cops_jax" / "compiled",
    "own/clip": repository,
  }
  for folder in folders.values():
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "b").write_bytes(bytes(1_500_000))
  found = types.SimpleNamespace(
    repo_id="own/clip", size_on_disk=1_500_000, repo_path=repository
  )
  monkeypatch.setattr(
    "huggingface_hub.scan_cache_dir",
    lambda: types.SimpleNamespace(repos=[found]),
  )
  place = f"--data_dir={tmp_path}/data"
  _, out, _ = script("cache", place)
  rows = [line.split() for line in out.splitlines()[1:]]
  assert [row[0] for row in rows] == [*folders, "total"]
  assert {row[-1] for row in rows} == {"1.5", "6.0"}
  code, _, err = script("cache", "remove", "featurs", "--yes")
  assert code == 2 and "no stored data is named 'featurs'" in err
  monkeypatch.setattr("builtins.input", lambda _: "n")
  code, _, err = script("cache", place, "remove", "features")
  assert code == 1 and "nothing was removed" in err
  assert all(folder.exists() for folder in folders.values())
  script("cache", "remove", place, "--yes", "features", "own/clip")
  left = [name for name, folder in folders.items() if folder.exists()]
  assert left == ["visa", "compiled"]


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_a_shell_completes_commands_and_flags(capsys):
  main(["--print-completion", "zsh"])
  assert "--manual_dir" in capsys.readouterr().out
  main(["--print-completion", "bash"])
  text = capsys.readouterr().out + COMPLETE
  found = subprocess.check_output(["bash"], input=text, text=True)
  assert found.split() == ["predict", "prepare", "--manual_dir"]


def test_a_missing_package_is_reported_before_any_work(monkeypatch):
  monkeypatch.setitem(sys.modules, "jax2onnx", None)
  _, _, err = script("export", "--workdir=/nowhere", "--out=a.onnx")
  assert 'pip install "cops-jax[onnx]"' in err


def test_flags_and_recipes_expand_the_home_folder(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  recipe = "from cops_jax.config import recipe\n\ndef get_config():\n"
  recipe += "  config = recipe('demo')\n  config.data_dir = '~/data'\n"
  recipe += "  config.evaluation.datasets = ('folder:~/a',)\n  return config\n"
  (tmp_path / "recipe.py").write_text(recipe)
  parser = make_parser("cops train", "")
  flags.add_config(parser)
  options = parser.parse_args(
    ["--config=~/recipe.py", "--config.backbone.weights=~/clip"]
  )
  config = flags.read_config(options)
  assert config.data_dir == f"{tmp_path}/data"
  assert config.evaluation.datasets == (f"folder:{tmp_path}/a",)
  assert config.backbone.weights == f"{tmp_path}/clip"
  for name, *arguments in (
    ("evaluate", "--workdir=~/run"),
    ("predict", "--clip=~/run", "/etc/hostname"),
    ("compare", "~/run"),
    ("weights", "inspect", "~/run"),
  ):
    code, _, err = script(name, *arguments)
    assert code == 1 and f"{tmp_path}/run" in err


def test_an_error_about_a_read_only_home_names_the_field(tmp_path):
  (tmp_path / "file").write_bytes(b"")
  with pytest.raises(InputError, match="Not a directory. .*--config.data_dir="):
    prepare("demo_auxiliary", str(tmp_path / "file" / "data"))


def test_a_failed_data_set_is_reported_once(monkeypatch, tmp_path):
  def fail(*_, **__):
    logging.getLogger("cops_jax").error("folder:x failed: it is empty")
    return Evaluated({}, {}, {"folder:x": "it is empty"}, {})

  monkeypatch.setattr("cops_jax.evaluation.many.evaluate", fail)
  _, out, err = script("evaluate", "--config=demo", f"--workdir={tmp_path}")
  assert (out + err).count("it is empty") == 1


def test_the_console_command_runs_main():
  (found,) = importlib.metadata.entry_points(
    group="console_scripts", name="cops"
  )
  assert found.value == "cops_jax.__main__:main"


PRINT = """
from cops_jax.commands import command_line
command_line(lambda _: print("a line"))()
"""


@pytest.mark.parametrize(
  "arguments",
  (
    ["-c", PRINT],  # Python writes the line at its exit.
    ["-u", "-c", PRINT],  # Python writes the line at once.
    ["-m", "cops_jax", "-h"],
    ["-m", "cops_jax", "train", "-h"],
  ),
)
def test_closed_output_ends_a_command_without_a_message(arguments):
  reader, writer = os.pipe()
  os.close(reader)
  with open(writer, "wb") as closed:
    with start_afresh(*arguments, stdout=closed) as process:
      _, err = process.communicate()
  # argparse returns 0 even if it cannot write the help.
  assert not err and process.returncode == ("train" not in arguments)


def test_output_into_pipes_is_utf_8():
  latin = {**os.environ, "PYTHONIOENCODING": "latin-1"}
  line = PRINT.replace("a line", "\u00e4")
  with start_afresh("-c", line, env=latin, text=False) as process:
    assert process.communicate()[0] == "\u00e4\n".encode()


def test_a_missing_run_names_the_command_to_use(tmp_path):
  """The error reports that there is no run or no checkpoint."""
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


def test_threads_that_wait_for_a_server_do_not_delay_the_exit():
  began = time.monotonic()
  with start_afresh("-c", STUCK) as process:
    _, err = process.communicate(timeout=50)
  assert process.returncode == 1 and err == "error: the server has gone\n"
  assert time.monotonic() - began < 30
