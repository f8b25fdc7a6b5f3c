"""The training loop in one process, with three steps of two images each."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.lax import stop_gradient

from cops_jax import datasets, training
from cops_jax.errors import InputError
from cops_jax.evaluation.evaluator import Evaluator
from cops_jax.images import read
from cops_jax.runs.checkpoints import Checkpoints
from cops_jax.runs.metrics_log import read_metrics
from cops_jax.runtime import signals
from cops_jax.training import step as steps


def newest_step(workdir):
  with Checkpoints(workdir) as saved:
    return saved.latest_step()


def test_the_step_is_compiled_once_and_loss_terms_are_averaged(
  tiny, tmp_path, monkeypatch
):
  """Whole batches, padded batches and all epochs share one program."""
  tiny.features_dir = str(tmp_path / "features")
  tiny.train.batch_size = 4
  tiny.train.num_epochs = 3
  real, traced = steps.loss_and_terms, []

  def count(*args):
    traced.append(None)
    return real(*args)

  monkeypatch.setattr(steps, "loss_and_terms", count)
  found = {}
  for every, dtype in ((1, "none"), (4, "float32")):
    tiny.feature_cache.dtype = dtype
    tiny.train.log_every_steps = every
    workdir = tmp_path / f"run{every}"
    assert int(training.train(tiny, workdir).step) == 6
    found[every] = read_metrics(workdir)
    assert len(traced) == 1
    traced.clear()
  losses = [row["loss"] for row in found[1]]
  assert [row["step"] for row in found[1]] == [1, 2, 3, 4, 5, 6]
  assert [row["step"] for row in found[4]] == [4, 6]
  want = [np.mean(losses[:4]), np.mean(losses[4:])]
  np.testing.assert_allclose([row["loss"] for row in found[4]], want, rtol=1e-5)


@pytest.mark.parametrize(
  "kind, names",
  (("loss", ["gradient_norm", "loss"]), ("gradient", ["gradient_norm"])),
)
def test_a_step_that_is_not_finite_stops_the_run(
  tiny, tmp_path, monkeypatch, kind, names
):
  """A finite loss with a gradient that is not finite stops the run, too.

  The loop notices it one step later. That step changes nothing.
  """
  tiny.train.log_every_steps = 100
  examples = datasets.load(tiny.train.dataset, tiny.train.split)
  place = int(np.random.default_rng((tiny.seed, 0)).permutation(6)[2])
  size = tiny.model.image_size_pixels
  bad = read(examples[place]["image"]).resize(size)
  real = steps.loss_and_terms

  def spoil(model, params, backbone_params, batch):
    loss, terms = real(model, params, backbone_params, batch)
    is_bad = (batch["image"] == bad[None]).all((1, 2, 3)).any()
    total = optax.tree.sum(params)
    number = jnp.where(is_bad, 0.0, 1.0) + total - stop_gradient(total)
    loss += {"loss": jnp.log, "gradient": jnp.sqrt}[kind](number)
    return loss, {**terms, "loss": loss}

  monkeypatch.setattr(steps, "loss_and_terms", spoil)
  workdir = tmp_path / "run"
  messages = []
  for _ in range(2):  # The second run resumes from the step before.
    with pytest.raises(InputError) as error:
      training.train(tiny, workdir)
    messages.append(str(error.value))
    with Checkpoints(workdir) as saved:
      step, params = saved.restore_params()
    assert step == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
  assert messages[0] == messages[1]
  report = json.loads((workdir / "non_finite.json").read_text())
  assert report["step"] == 2
  assert messages[0].startswith(
    f"step 2 has values that are not finite: {', '.join(names)}. Its images are"
    f" {', '.join(report['examples'])};"
  )
  assert len(report["examples"]) == 2
  assert examples[place]["path"] in report["examples"]
  assert report["terms"]["gradient_norm"] in ("inf", "nan")
  assert (report["terms"]["loss"] == "-inf") == (kind == "loss")


def test_a_run_that_is_stopped_or_killed_loses_nothing(
  tiny, tmp_path, monkeypatch
):
  """It is stopped after step 1, killed in an evaluation, and stopped again."""
  tiny.train.evaluate_every_steps = 2
  tiny.evaluation.datasets = (tiny.train.dataset,)
  whole, workdir = tmp_path / "whole", tmp_path / "run"
  training.train(tiny, whole)

  class Killed(BaseException):
    pass

  real, is_killed, evaluated = Evaluator.run, True, []

  def run(self, *args, **kwargs):
    if is_killed:
      raise Killed
    evaluated.append(None)
    return real(self, *args, **kwargs)

  monkeypatch.setattr(Evaluator, "run", run)
  answers = [True, False]  # Popped from the end: False before the first step.
  monkeypatch.setattr(
    signals, "is_due", lambda _: bool(answers) and answers.pop()
  )
  with pytest.raises(SystemExit) as ended:
    training.train(tiny, workdir)
  assert ended.value.code == 75 and newest_step(workdir) == 1
  with pytest.raises(Killed):
    training.train(tiny, workdir)
  assert newest_step(workdir) == 2  # Saved before the evaluation.
  is_killed, answers[:] = False, [True, False]
  with pytest.raises(SystemExit):
    training.train(tiny, workdir)
  assert newest_step(workdir) == 3 and len(evaluated) == 1
  training.train(tiny, workdir)  # A signal after the last evaluation is late.
  assert len(evaluated) == 2
  assert read_metrics(workdir) == read_metrics(whole)
  training.train(tiny, workdir)  # Nothing remains to be done.
  assert len(evaluated) == 2
