"""Training, evaluation, detector and exports of methods that are not CoPS."""

import jax
import numpy as np
import pytest

from cops_jax import calibrate, export, reporting, training
from cops_jax.detector import AnomalyDetector
from cops_jax.errors import InputError
from cops_jax.evaluation import many
from cops_jax.inputs.pipeline import load_examples
from cops_jax.runs.metrics_log import read_metrics
from cops_jax.runtime.mesh import make_mesh, replicate, shard_batch
from cops_jax.training import step as steps
from cops_jax.weights import build_model, clip_of
from helpers.config import make_config
from helpers.images import make_image, write_folder
from helpers.steps import assert_same_way, make_adam


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
  page = reporting.write(workdir, found)
  assert f"{title}: zero-shot" in page.read_text()
  assert 0 <= reporting.read_means(workdir)["parts"]["pixel_aupro_200"] <= 1


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
  want = detector.detect(decoded)
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


def test_cached_features_train_the_same(trained_run, make, tmp_path):
  config = make()
  config.feature_cache.dtype = "float32"
  config.features_dir = str(tmp_path / "features")
  training.train(config, tmp_path / "run")
  rows, want = read_metrics(tmp_path / "run"), read_metrics(trained_run)
  assert rows[-1]["step"] == 2
  names = {"loss", "image", "patch", "gradient_norm"}
  assert names < rows[0].keys() and not {"kl", "gather"} & rows[0].keys()
  for row, other in zip(rows, want, strict=True):
    for name in names & row.keys():
      assert row[name] == pytest.approx(other[name], rel=1e-5)


def test_devices_and_padding_do_not_matter(make):
  """6 images on one device, and on 8 devices with 2 of padding."""
  config = make()
  # Rounding to float16 would enlarge what rounding to float32 leaves.
  config.model.deep_prompt_cast = "none"
  clip = clip_of(config)
  model, adam = build_model(config, clip), make_adam()
  rng = np.random.default_rng(0)
  batch = {
    "image": rng.integers(0, 256, (8, 48, 48, 3), dtype=np.uint8),
    "mask": rng.integers(0, 2, (8, 48, 48), dtype=np.uint8),
    "label": np.arange(8, dtype=np.int32) % 2,
    "example_id": np.arange(8, dtype=np.uint32),
    "padding_mask": np.arange(8) < 6,
  }
  few = {name: array[:6] for name, array in batch.items()}
  start = jax.device_get(model.init_trainable(jax.random.key(0)))
  ends, losses = [], []
  for devices, rows in ((jax.devices()[:1], few), (jax.devices(), batch)):
    mesh = make_mesh(devices)
    step = steps.make_train_step(model, adam, mesh)
    state = replicate(steps.create_train_state(start, adam), mesh)
    placed = replicate(clip.params, mesh)
    for _ in range(3):
      state, terms = step(state, placed, shard_batch(rows, mesh))
    ends.append(jax.device_get(state.params))
    losses.append(float(terms["loss"]))
  assert losses[0] == pytest.approx(losses[1], rel=1e-5)
  assert_same_way(start, *ends, tolerance=1e-4)


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
