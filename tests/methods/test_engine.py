"""What the engine does with a method that is not CoPS."""

import json

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


def make(clip_folder, data_dir, folder):
  config = make_config(clip_folder, data_dir, "anomalyclip_demo")
  config.train.dataset = folder
  config.train.batch_size = 4
  config.evaluation.datasets = (folder,)
  return config


@pytest.fixture(scope="module")
def run(clip_folder, data_dir, folder, tmp_path_factory):
  """A trained run and its evaluation."""
  workdir = tmp_path_factory.mktemp("anomalyclip") / "run"
  config = make(clip_folder, data_dir, folder)
  training.train(config, workdir)
  return workdir, many.evaluate(config, workdir)


def test_cached_features_train_the_same(
  run, clip_folder, data_dir, folder, tmp_path
):
  """Two steps, the second of half a batch."""
  config = make(clip_folder, data_dir, folder)
  config.feature_cache.dtype = "float32"
  config.features_dir = str(tmp_path / "features")
  training.train(config, tmp_path / "run")
  rows, want = read_metrics(tmp_path / "run"), read_metrics(run[0])
  assert rows[-1]["step"] == 2
  names = {"loss", "image", "patch", "gradient_norm"}
  assert names < rows[0].keys() and not {"kl", "gather"} & rows[0].keys()
  for row, other in zip(rows, want, strict=True):
    for name in names & row.keys():
      assert row[name] == pytest.approx(other[name], rel=1e-5)


def test_devices_and_padding_do_not_matter(clip_folder, data_dir, folder):
  """6 images on one device, and on 8 devices with 2 of padding."""
  config = make(clip_folder, data_dir, folder)
  clip = clip_of(config)
  rng = np.random.default_rng(0)
  batch = {
    "image": rng.integers(0, 256, (8, 48, 48, 3), dtype=np.uint8),
    "mask": rng.integers(0, 2, (8, 48, 48), dtype=np.uint8),
    "label": np.arange(8, dtype=np.int32) % 2,
    "example_id": np.arange(8, dtype=np.uint32),
    "padding_mask": np.arange(8) < 6,
  }
  # Rounding to float16 would enlarge what rounding to float32 leaves.
  config.model.deep_prompt_cast = "none"
  model, adam = build_model(config, clip), make_adam()
  few = {name: array[:6] for name, array in batch.items()}
  start = model.init_trainable(jax.random.key(0))
  start = jax.device_get(start)
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


def test_the_report_and_the_table(run, tmp_path):
  workdir, found = run
  page = reporting.write(workdir, found)
  assert "AnomalyCLIP: zero-shot" in page.read_text()
  stored = json.loads((workdir / "results.json").read_text())
  assert stored["config"]["method"] == "anomalyclip"
  assert 0 <= reporting.read_means(workdir)["parts"]["pixel_aupro_200"] <= 1


def test_the_detector_scores_as_the_evaluation(run, folder, data_dir):
  """There is no noise that could differ."""
  workdir, found = run
  detector = AnomalyDetector.from_workdir(workdir)
  root = folder.removeprefix("folder:")
  images = found.results["parts"].images
  for image in images:
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
  paths = [tmp_path / "made.cops"]
  export.export(detector, paths[0])
  loaded = export.load(paths[0])
  assert loaded.metadata["method"] == "anomalyclip"
  outputs = [loaded(images)]
  try:
    import jax2onnx  # noqa: F401
    import onnxruntime
  except ImportError:
    pass
  else:
    paths.append(tmp_path / "made.onnx")
    export.export(detector, paths[1])
    session = onnxruntime.InferenceSession(paths[1])
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


def test_a_run_of_another_method_is_refused(
  run, clip_folder, data_dir, tmp_path
):
  """In one sentence, by evaluation, by training on and by training from it."""
  workdir, _ = run
  config = make_config(clip_folder, data_dir)
  message = (
    f"{workdir} holds prompts of the method 'anomalyclip', and config.method"
    " is 'cops'"
  )
  for attempt in (
    lambda: many.evaluate(config, workdir),
    lambda: training.train(config, workdir),
    lambda: training.train(config, tmp_path / "other", init_from=workdir),
  ):
    with pytest.raises(InputError) as caught:
      attempt()
    assert str(caught.value) == message
  assert not (tmp_path / "other").exists()
