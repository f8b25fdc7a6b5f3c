"""All commands from training to export with a set of package versions.

See `make stacks`.
"""

import json
import os
import signal

import numpy as np
import pytest

from cops_jax.runs.checkpoints import Checkpoints
from helpers.images import make_image
from helpers.scripts import start_afresh

pytestmark = pytest.mark.stack
LIMIT = 600  # Seconds until a command has failed.


def start(folder, *arguments):
  """Starts `cops ARGUMENTS` with the settings of users, not of tests."""
  settings = ("JAX_NUM_CPU_DEVICES", "JAX_DISABLE_MOST_OPTIMIZATIONS")
  variables = {k: v for k, v in os.environ.items() if k not in settings}
  return start_afresh("-m", "cops_jax", *arguments, cwd=folder, env=variables)


def run(folder, *arguments):
  with start(folder, *arguments) as process:
    out, err = process.communicate(timeout=LIMIT)
  assert process.returncode == 0, err
  return out


def saved_arrays(workdir):
  with Checkpoints(workdir) as saved:
    step, params = saved.restore_params()
  assert step == 72
  return params


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Folder with an uninterrupted run of the demo and a resumed one."""
  folder = tmp_path_factory.mktemp("user")
  command = (
    *("train", "--config=demo", "--config.train.num_epochs=1"),
    "--config.train.checkpoint_every_steps=16",
    f"--config.data_dir={folder}/data",
  )
  run(folder, *command, "--workdir=whole")
  with start(folder, *command, "--workdir=run") as process:
    while not (folder / "run/checkpoints/16/manifest.json").exists():
      assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=LIMIT)
  assert process.returncode == 75, err
  run(folder, *command, "--workdir=run")
  return folder


def test_a_resumed_run_equals_an_uninterrupted_one(folder):
  import jax

  trees = [saved_arrays(folder / name) for name in ("whole", "run")]
  jax.tree.map(np.testing.assert_array_equal, *trees)


def test_evaluation_is_better_than_untrained_prompts(folder):
  assert "demo_unseen  mean" in run(folder, "evaluate", "--workdir=run")
  results = json.loads((folder / "run/results.json").read_text())
  means = results["datasets"]["demo_unseen"]["mean"]
  # Untrained prompts reach 60 and 53 percent.
  assert means["image_auroc"] > 0.7 and means["pixel_auroc"] > 0.8


@pytest.fixture(scope="module")
def predicted(folder):
  """An image of the model's size, and its score from `cops predict`."""
  image = make_image(0, 112, 112)
  image.save(folder / "photo.png")
  out = run(folder, "predict", "photo.png", "--workdir=run", "--out=found")
  for name in ("index.html", "pictures/photo.jpg"):
    assert (folder / "found" / name).is_file()
  return np.asarray(image), json.loads(out)["image_score"]


def test_an_exported_file_computes_the_same(folder, predicted):
  from cops_jax import export

  image, want = predicted
  run(folder, "export", "--workdir=run", "--out=model.cops")
  outputs = export.load(folder / "model.cops")(image[None])
  assert outputs["image_score"][0] == pytest.approx(want, abs=1e-5)


def test_an_onnx_file_computes_the_same(folder, predicted):
  pytest.importorskip("jax2onnx")
  import onnxruntime

  image, want = predicted
  run(folder, "export", "--workdir=run", "--out=model.onnx")
  session = onnxruntime.InferenceSession(folder / "model.onnx")
  scores, _ = session.run(None, {"images": image[None]})
  assert scores[0] == pytest.approx(want, abs=1e-5)
