"""Commands on systems that lack modules or functions of Linux."""

import csv
import json
import os
import shutil

from helpers.images import make_image, write_folder
from helpers.original_layouts import write_tree
from helpers.scripts import ROOT, start_afresh

# Removes modules and functions that Windows lacks.
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
import grain  # On other systems it imports array_record.

platform.system = system
from cops_jax.__main__ import main

for arguments in json.loads(sys.argv[1]):
  sys.argv = ["cops", *arguments]
  if code := main():
    sys.exit(code)
"""


def test_commands_work_without_modules_that_windows_lacks(trained, tmp_path):
  """Prepared data sets need array_record; folders do not."""
  run_folder = shutil.copytree(trained[0], tmp_path / "run")
  workdir = f"--workdir={run_folder}"
  images = write_folder(tmp_path / "screws", 6)
  make_image(0).save(tmp_path / "photo.png")
  commands = (
    ["evaluate", workdir, f"--datasets={images}"],
    ["calibrate", workdir, "--normal", f"{tmp_path}/screws/test/good"],
    ["predict", f"{tmp_path}/photo.png", workdir],
    [
      *("evaluate", workdir, "--datasets=demo_unseen"),
      f"--config.data_dir={tmp_path}",
    ],
  )
  with start_afresh("-c", SCRIPT, json.dumps(commands)) as process:
    out, err = process.communicate(timeout=300)
  assert process.returncode == 1 and "Traceback" not in err, err
  assert err.splitlines()[-1].startswith("error: ") and "array_record" in err
  with (run_folder / "scores.csv").open() as file:
    assert len(list(csv.DictReader(file))) == 6
  prediction = json.loads(out.splitlines()[-1])
  assert prediction["verdict"] in ("normal", "anomaly")


IMPORT = """
import os
import signal
import sys

if __name__ == "__main__":
  import cops_jax.detector
  slow = {"transformers", "flax", "orbax", "scipy"} & sys.modules.keys()
  assert not slow, slow
  import cops_jax.predict
  cops_jax.detector.AnomalyDetector.from_pretrained(sys.argv[3])
  slow = {"orbax", "optax", "grain", "tensorflow_datasets", "matplotlib", "clu"}
  slow |= {"scipy.ndimage", "scipy.sparse", "scipy.stats"}
  slow &= sys.modules.keys()
  assert not slow, f"cops predict imports {slow}"
  import cops_jax.training, cops_jax.weights
  from cops_jax import datasets
  from cops_jax.inputs import pipeline
  assert "transformers" in sys.modules
  assert not {"USE_TORCH", "USE_TF"} & os.environ.keys()
  examples = datasets.load("kvasir", "test", sys.argv[1], sys.argv[2])
  options = pipeline.BatchOptions(
    image_size=8, patch_size=4, batch_size=2, num_workers=1
  )
  batches = pipeline.iterate_batches(examples, options, range(200))
  assert sum(next(batches)["padding_mask"].sum() for _ in range(2)) == 3
  assert not {"torch", "tensorflow"} & sys.modules.keys()
  print("ready", flush=True)
  os.kill(os.getpid(), signal.SIGKILL)
"""


def test_neither_torch_nor_tensorflow_is_imported(tmp_path):
  """The script reads original files into batches, also in worker processes.

  Fake modules on the path represent both packages. The detector is imported
  without the slow packages of the model, and `cops predict` without those of
  training, data sets and reports.
  """
  write_tree("kvasir", tmp_path)
  packages = tmp_path / "packages"
  packages.mkdir()
  for name in ("torch", "tensorflow"):
    path = packages / f"{name}.py"
    path.write_text(f"print('used {name}')\n__version__ = '2.9.0'")
  script = tmp_path / "script.py"
  script.write_text(IMPORT)
  variables = {**os.environ, "PYTHONPATH": f"{packages}{os.pathsep}{ROOT}"}
  prompts = ROOT / "cops_jax" / "demo" / "prompts"
  arguments = (script, tmp_path / "prepared", tmp_path, prompts)
  with start_afresh(*arguments, env=variables) as process:
    first = process.stdout.readline()
    # This also waits for the workers, which hold the same pipes.
    out, err = process.communicate(timeout=20)
  assert (first, out, process.returncode) == ("ready\n", "", -9), err
