"""Training, evaluation, detector and exports of methods that are not CoPS."""

import numpy as np
import pytest

from cops_jax import calibrate, export, training
from cops_jax.detector import AnomalyDetector
from cops_jax.errors import InputError
from cops_jax.evaluation import many
from cops_jax.inputs import load_examples
from cops_jax.reporting import report, tables
from helpers.config import make_config
from helpers.images import make_image, write_folder


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
  """A run of AnomalyCLIP: two steps, the second of half a batch."""
  workdir = tmp_path_factory.mktemp("anomalyclip") / "run"
  training.train(make(), workdir)
  return workdir


@pytest.fixture(scope="module", params=("AnomalyCLIP", "Prompt ensemble"))
def run(request, make, trained_run, tmp_path_factory):
  """A work directory and its evaluation; nothing trains the ensemble's."""
  if request.param == "AnomalyCLIP":
    return trained_run, many.evaluate(make(), trained_run), request.param
  workdir = tmp_path_factory.mktemp("ensemble") / "run"
  config = make("prompt_ensemble_demo")
  return workdir, many.evaluate(config, workdir), request.param


def test_the_report_and_the_table(run):
  workdir, found, title = run
  assert not found.failed
  page = report.write(workdir, found)
  assert f"{title}: zero-shot" in page.read_text()
  assert (
    0
    <= tables.means_of(tables.read_results(workdir))["parts"]["pixel_aupro_200"]
    <= 1
  )


def test_the_detector_scores_as_the_evaluation(run, folder):
  """There is no noise that could differ."""
  workdir, found, _ = run
  detector = AnomalyDetector.from_workdir(workdir)
  root = folder.removeprefix("folder:")
  for image in found.results["parts"].images:
    detection = detector(f"{root}/{image.path}")
    assert detection.image_score == pytest.approx(image.image_score, abs=1e-5)
  examples = load_examples(detector.config, folder, "test")
  chosen = calibrate.from_labelled_data(detector, examples)
  assert chosen.prompts_sha256 == detector.prompts_sha256


def test_exports_are_the_detector(run, tmp_path):
  detector = AnomalyDetector.from_workdir(run[0])
  decoded = [detector.decode(make_image(seed, 48, 48)) for seed in range(3)]
  images = np.stack([image.pixels for image in decoded])
  want = list(detector.detect(decoded))
  export.export(detector, tmp_path / "made.cops")
  loaded = export.load(tmp_path / "made.cops")
  assert loaded.metadata["method"] == detector.config.method
  outputs = [loaded(images)]
  try:
    import jax2onnx  # noqa: F401
    import onnxruntime
  except ImportError:
    pass
  else:
    export.export(detector, tmp_path / "made.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "made.onnx")
    names = ["image_score", "anomaly_map"]
    values = session.run(names, {"images": images})
    outputs.append(dict(zip(names, values, strict=True)))
  for found in outputs:
    for row, detection in enumerate(want):
      score = pytest.approx(detection.image_score, abs=1e-5)
      assert found["image_score"][row] == score
      np.testing.assert_allclose(
        found["anomaly_map"][row], detection.anomaly_map, atol=1e-5
      )


def test_a_run_of_another_method_is_refused(trained_run, make, tmp_path):
  """In one sentence, by evaluation, by training on and by training from it."""
  config = make("demo")
  message = (
    f"{trained_run} holds prompts of the method 'anomalyclip', and"
    " config.method is 'cops'"
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
