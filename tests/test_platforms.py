"""Commands on systems that lack some of what Linux has."""

import csv
import json
import shutil

from helpers.images import make_image, write_folder
from helpers.scripts import start_afresh

# What Windows lacks: modules, and functions of modules.
SCRIPT = """
import json
import os
import platform
import signal
import sys

for name in ("resource", "array_record", "fcntl", "pwd", "grp"):
  sys.modules[name] = None
del signal.pthread_sigmask, os.posix_fallocate, os.sched_getaffinity
system, platform.system = platform.system, lambda: "Windows"
import grain  # It asks for array_record elsewhere.

platform.system = system
from cops_jax.__main__ import main

for arguments in json.loads(sys.argv[1]):
  sys.argv = ["cops", *arguments]
  if code := main():
    sys.exit(code)
"""


def run(*commands):
  """Exit status, output and errors of commands, one after the other."""
  with start_afresh("-c", SCRIPT, json.dumps(commands)) as process:
    out, err = process.communicate(timeout=300)
  return process.returncode, out, err


def test_commands_on_folders(trained, tmp_path):
  run_folder = shutil.copytree(trained[0], tmp_path / "run")
  workdir = f"--workdir={run_folder}"
  images = write_folder(tmp_path / "screws", 6)
  make_image(0).save(tmp_path / "photo.png")
  code, out, err = run(
    ["evaluate", workdir, f"--datasets={images}"],
    ["calibrate", workdir, "--normal", f"{tmp_path}/screws/test/good"],
    ["export", workdir, f"--out={tmp_path}/model.cops"],
    ["predict", str(tmp_path / "photo.png"), workdir],
  )
  assert code == 0, err
  with (run_folder / "scores.csv").open() as file:
    assert len(list(csv.DictReader(file))) == 6
  assert (tmp_path / "model.cops").exists()
  prediction = json.loads(out.splitlines()[-1])
  assert prediction["verdict"] in ("normal", "anomaly")
  code, out, err = run(["demo", "--help"])
  assert code == 0 and out.startswith("usage: cops demo"), err


def test_prepared_data_need_array_record(trained, tmp_path):
  code, _, err = run(
    [
      *("evaluate", f"--workdir={trained[0]}", "--datasets=demo_unseen"),
      f"--config.data_dir={tmp_path}",
    ]
  )
  assert code == 1
  assert err.splitlines()[-1].startswith("error: ") and "array_record" in err
  assert "Traceback" not in err


def test_neither_torch_nor_tensorflow_is_imported(tmp_path):
  """Modules on the path stand in for both packages."""
  for name in ("torch", "tensorflow"):
    (tmp_path / f"{name}.py").write_text("__version__ = '2.9.0'")
  script = (
    f"import os, sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    "import cops_jax.detector, cops_jax.training, cops_jax.weights\n"
    "found = {'torch', 'tensorflow'} & sys.modules.keys()\n"
    "assert 'transformers' in sys.modules and not found, found\n"
    "assert not {'USE_TORCH', 'USE_TF'} & os.environ.keys()"
  )
  with start_afresh("-c", script) as process:
    _, err = process.communicate()
  assert process.returncode == 0, err
