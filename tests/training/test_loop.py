"""The training loop where something goes wrong."""

import json

import pytest

from cops_jax import training
from cops_jax.errors import InputError
from cops_jax.evaluation.dataset import DatasetEvaluator
from cops_jax.runs.checkpoints import Checkpoints
from cops_jax.runs.metrics_log import read_metrics
from cops_jax.training import step as steps


@pytest.mark.parametrize("feature_cache", ("none", "float32"))
def test_the_step_is_compiled_once(tiny, tmp_path, monkeypatch, feature_cache):
  """For whole batches, those with padding, and all epochs."""
  tiny.feature_cache.dtype = feature_cache
  tiny.features_dir = str(tmp_path / "features")
  tiny.train.batch_size = 4
  tiny.train.num_epochs = 3
  real, traced = steps.loss_and_terms, []

  def count(*args):
    traced.append(None)
    return real(*args)

  monkeypatch.setattr(steps, "loss_and_terms", count)
  assert int(training.train(tiny, tmp_path / "run").step) == 6
  assert len(traced) == 1


def test_losses_that_are_not_finite_stop_the_run(tiny, tmp_path):
  tiny.train.learning_rate = 1e30
  workdir = tmp_path / "run"
  messages = []
  for _ in range(2):  # The second time, from the checkpoint before.
    with pytest.raises(InputError, match="step 2 is not finite in: ") as error:
      training.train(tiny, workdir)
    messages.append(str(error.value))
  assert messages[0] == messages[1]
  assert "checkpoint 1 is the state before" in messages[0]
  report = json.loads((workdir / "non_finite.json").read_text())
  assert report["step"] == 2
  assert "loss" in messages[0] and report["terms"]["loss"] in ("nan", "inf")
  assert len(report["examples"]) == 2
  assert all(path.startswith("nut/test/") for path in report["examples"])
  assert report["not_finite_alone"] == report["examples"]
  assert "the parameters are at fault" in messages[0]
  with Checkpoints(workdir) as saved:
    assert saved.latest_step() == 1


def test_an_evaluation_that_was_killed_is_repeated(tiny, tmp_path, monkeypatch):
  """Killed in the second and in the last evaluation, of steps 2 and 3."""
  tiny.train.evaluate_every_steps = 1
  tiny.evaluation.datasets = (tiny.train.dataset,)
  whole, workdir = tmp_path / "whole", tmp_path / "run"
  training.train(tiny, whole)

  class Killed(BaseException):
    pass

  real, counts = DatasetEvaluator.run, []

  def run(self, *args, **kwargs):
    counts.append(None)
    if len(counts) in (2, 4):
      raise Killed
    return real(self, *args, **kwargs)

  monkeypatch.setattr(DatasetEvaluator, "run", run)
  for step in (2, 3):
    with pytest.raises(Killed):
      training.train(tiny, workdir)
    with Checkpoints(workdir) as saved:
      assert saved.latest_step() == step
  training.train(tiny, workdir)
  assert len(counts) == 5
  assert read_metrics(workdir) == read_metrics(whole)
  training.train(tiny, workdir)  # Nothing is left to do.
  assert len(counts) == 5
