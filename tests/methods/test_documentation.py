"""The example method of docs/new_method.md."""

import re
import shlex
import sys

import jax
import numpy as np
import pytest

from cops_jax import export, methods, training
from cops_jax.commands import flags, train
from cops_jax.detector import AnomalyDetector
from cops_jax.evaluation import many
from cops_jax.runs.metrics_log import read_metrics
from helpers.images import make_image, write_folder
from helpers.scripts import ROOT

TEXT = (ROOT / "docs" / "new_method.md").read_text()


@pytest.fixture
def coop(tmp_path, monkeypatch):
  (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
  assert len(code.splitlines()) < 80
  (tmp_path / "methods").mkdir()
  (tmp_path / "methods" / "coop.py").write_text(code)
  folders = [*methods.__path__, str(tmp_path / "methods")]
  monkeypatch.setattr(methods, "__path__", folders)
  yield methods.find("coop")
  del sys.modules["cops_jax.methods.coop"]


def test_the_example_method_runs(coop, clip_folder, tmp_path):
  assert isinstance(coop, methods.Method)
  folder = write_folder(tmp_path / "parts", 6)
  (command,) = re.findall(r"^cops train (.*\\\n.*)", TEXT, re.M)
  words = shlex.split(command.replace("\\\n", " "))
  config = flags.read_config(train._parser().parse_args(words))
  assert config.method == "coop" and config.feature_cache.dtype == "float32"
  config.update_from_flattened_dict(
    {
      "features_dir": str(tmp_path / "features"),
      "backbone.weights": str(clip_folder),
      "model.image_size_pixels": 48,
      "model.feature_layers": (2, 3),
      "model.num_value_layers": 2,
      "model.num_context_words": 4,
      "train.dataset": folder,
      "train.num_epochs": 8,
      "train.batch_size": 6,
      "train.log_every_steps": 1,
      "evaluation.datasets": (folder,),
    }
  )
  workdir = tmp_path / "run"
  state = training.train(config, workdir)
  shapes = jax.tree.map(np.shape, jax.device_get(state.params))
  assert shapes == {"coop_words": (4, 24)}
  rows = [row for row in read_metrics(workdir) if "loss" in row]
  assert rows[-1]["loss"] < rows[0]["loss"]
  found = many.evaluate(config, workdir)
  assert not found.failed
  detector = AnomalyDetector.from_workdir(workdir)
  images = np.asarray(make_image(0, 48, 48))[None]
  export.export(detector, tmp_path / "coop.cops")
  score = export.load(tmp_path / "coop.cops")(images)["image_score"][0]
  assert score == pytest.approx(detector(images[0]).image_score, abs=1e-5)
