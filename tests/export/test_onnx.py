"""The ONNX file in ONNX Runtime compared with the detector."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest

from cops_jax import export
from cops_jax.detector import AnomalyDetector
from cops_jax.errors import InputError
from cops_jax.export import onnx
from cops_jax.thresholds import Thresholds
from cops_jax.weights.model import build_model
from helpers.images import make_image

pytest.importorskip("jax2onnx")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def path(trained, tmp_path_factory):
  detector = AnomalyDetector.from_workdir(trained[0])
  detector.thresholds = [Thresholds(0.5, 0.25, "by hand")]
  path = tmp_path_factory.mktemp("onnx") / "made.onnx"
  export.export(detector, path)
  return path


def decode(detector, number):
  return [detector.decode(make_image(seed, 48, 48)) for seed in range(number)]


def check(session, images, want):
  scores, maps = session.run(["image_score", "anomaly_map"], {"images": images})
  assert len(scores) == len(want)
  for score, anomaly_map, detection in zip(scores, maps, want, strict=True):
    assert score == pytest.approx(detection.image_score, abs=1e-5)
    np.testing.assert_allclose(anomaly_map, detection.anomaly_map, atol=1e-5)


def test_the_file_scores_any_number_of_images_like_the_detector(trained, path):
  # This detector compiles after an export, which must not change its results.
  detector = AnomalyDetector.from_workdir(trained[0])
  decoded = decode(detector, 3)
  want = list(detector.detect(decoded))
  assert len({detection.image_score for detection in want}) == 3
  images = np.stack([image.pixels for image in decoded])
  session = onnxruntime.InferenceSession(path)
  for number in (1, 3):
    check(session, images[:number], want[:number])
  metadata = session.get_modelmeta().custom_metadata_map
  metadata = {name: json.loads(value) for name, value in metadata.items()}
  assert metadata["thresholds"] == dataclasses.asdict(
    Thresholds(0.5, 0.25, "by hand")
  )
  assert metadata["image_size_pixels"] == 48
  assert metadata["backbone_sha256"] == detector.backbone.sha256
  assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_prompts_without_category_and_state_words_are_exported(
  trained, tmp_path
):
  """The detector smooths patches and compares them with reference images."""
  whole = AnomalyDetector.from_workdir(trained[0])
  config = whole.config.copy_and_resolve_references()
  config.model.update(
    num_category_words=0, num_state_words=0, smoothing_window_patches=3
  )
  params = build_model(config, whole.backbone).init_trainable(jax.random.key(0))
  detector = AnomalyDetector(config, params, whole.backbone)
  detector = detector.with_normal_images([make_image(10), make_image(11)])
  path = tmp_path / "made.onnx"
  export.export(detector, path)
  session = onnxruntime.InferenceSession(path)
  decoded = decode(detector, 3)
  images = np.stack([image.pixels for image in decoded])
  check(session, images, list(detector.detect(decoded)))


def test_a_wrong_file_is_not_written(trained, tmp_path, monkeypatch):
  path = tmp_path / "made.onnx"
  with monkeypatch.context() as patch:
    patch.setattr(onnx, "_convert", lambda *args: b"no model")
    with pytest.raises(
      InputError, match="cannot write a valid ONNX file for this run"
    ):
      export.export(AnomalyDetector.from_workdir(trained[0]), path)
  right = onnx.detect_anomalies

  def off(*args, **kwargs):
    """Returns right results to JAX and wrong ones to jax2onnx's tracing."""
    outputs = right(*args, **kwargs)
    if isinstance(args[2]["image"].shape[0], int):
      return outputs
    return outputs | {"anomaly_map": outputs["anomaly_map"] * 1.1}

  monkeypatch.setattr(onnx, "detect_anomalies", off)
  with pytest.raises(InputError, match="wrong ONNX file .* anomaly_map is off"):
    export.export(AnomalyDetector.from_workdir(trained[0]), path)
  assert not list(tmp_path.iterdir())


def test_failed_exports_are_reported(trained, tmp_path, monkeypatch):
  detector = AnomalyDetector.from_workdir(trained[0])
  path = tmp_path / "made.onnx"
  with monkeypatch.context() as patch:
    patch.setattr(onnx, "_MAX_BYTES", 1000)
    with pytest.raises(InputError, match="export a .cops file"):
      export.export(detector, path)
  with monkeypatch.context() as patch:
    patch.setattr(onnx, "_convert", lambda *_: b"content")
    patch.setattr(onnx, "_check", lambda *_: None)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="made.onnx cannot be written: "):
      export.export(detector, tmp_path / "file" / "made.onnx")
  with monkeypatch.context() as patch:
    patch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(InputError, match=r'pip install "cops-jax\[onnx\]"'):
      export.export(detector, path)
  assert not path.exists()
