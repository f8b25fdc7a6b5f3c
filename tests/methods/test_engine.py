"""Training and evaluation of the methods other than CoPS."""

import pytest

from cops_jax import training
from cops_jax.errors import InputError
from cops_jax.evaluation import many
from cops_jax.reporting import report, tables
from helpers.config import make_config
from helpers.images import write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return write_folder(tmp_path_factory.mktemp("data") / "parts", 6)


@pytest.fixture(scope="module")
def make(clip_folder, data_dir, folder):
  def make(recipe="anomalyclip_demo"):
    config = make_config(clip_folder, data_dir, recipe)
    config.train.dataset = folder
    config.train.batch_size = 4
    config.evaluation.datasets = (folder,)
    return config

  return make


@pytest.fixture(scope="module")
def trained_run(make, tmp_path_factory):
  """Run of AnomalyCLIP with two steps, the second on half a batch."""
  workdir = tmp_path_factory.mktemp("anomalyclip") / "run"
  training.train(make(), workdir)
  return workdir


@pytest.fixture(
  scope="module", params=("AnomalyCLIP", "Prompt ensemble", "UniADet")
)
def run(request, make, trained_run, tmp_path_factory):
  """Run directory, its evaluation and the method's title.

  The prompt ensemble is not trained. UniADet is trained and evaluated on cached
  class tokens of all layers.
  """
  if request.param == "AnomalyCLIP":
    return trained_run, many.evaluate(make(), trained_run), request.param
  if request.param == "UniADet":
    workdir = tmp_path_factory.mktemp("uniadet") / "run"
    config = make("uniadet_demo")
    config.features_dir = str(workdir.parent / "features")
    config.feature_cache.dtype = "bfloat16"
    training.train(config, workdir)
    return workdir, many.evaluate(config, workdir), request.param
  workdir = tmp_path_factory.mktemp("ensemble") / "run"
  config = make("prompt_ensemble_demo")
  return workdir, many.evaluate(config, workdir), request.param


def test_reports_and_tables_show_every_method(run):
  workdir, found, title = run
  assert not found.failed
  page = report.write(workdir, found)
  assert f"{title}: zero-shot" in page.read_text()
  assert (
    0
    <= tables.means_of(tables.read_results(workdir))["parts"]["pixel_aupro_200"]
    <= 1
  )


def test_a_run_of_another_method_is_rejected(trained_run, make, tmp_path):
  """Evaluating, resuming and starting from the run have the same message."""
  config = make("demo")
  message = (
    f"{trained_run} has prompts of the method 'anomalyclip', but"
    " config.method is 'cops': use a config of the same method"
  )
  for attempt in (
    lambda: many.evaluate(config, trained_run),
    lambda: training.train(config, trained_run),
    lambda: training.train(config, tmp_path / "other", init_from=trained_run),
  ):
    with pytest.raises(InputError) as caught:
      attempt()
    assert str(caught.value) == message
  assert not (tmp_path / "other").exists()
