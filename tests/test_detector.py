"""The detector on images of any kind and size, and from several threads."""

import concurrent.futures
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from cops_jax import detector as detector_module
from cops_jax import thresholds
from cops_jax.detector import AnomalyDetector, Detection
from cops_jax.errors import InputError
from cops_jax.evaluation import step as steps
from cops_jax.files import seal, unseal
from cops_jax.images import tiles as tiling
from cops_jax.runs.checkpoints import Checkpoints
from cops_jax.runs.record import read_record
from cops_jax.thresholds import Thresholds
from cops_jax.weights import prompts
from helpers.images import make_image
from helpers.scripts import ROOT


@pytest.fixture(scope="module")
def workdir(trained, tmp_path_factory):
  copy = tmp_path_factory.mktemp("run") / "run"
  shutil.copytree(trained[0], copy)
  thresholds.write_thresholds(copy, Thresholds(0.5, 0.25, "by hand"))
  return copy


@pytest.fixture(scope="module")
def detector(workdir):
  return AnomalyDetector.from_workdir(workdir)


def assert_same(got, want, rtol=0.0):
  assert got.grid == want.grid
  assert got.image_score == pytest.approx(want.image_score, rel=rtol, abs=0)
  np.testing.assert_allclose(
    got.anomaly_map, want.anomaly_map, rtol=10 * rtol, atol=rtol / 10
  )


def test_every_form_of_an_image_has_the_same_result(detector, tmp_path):
  image = make_image(0)
  path = tmp_path / "a.png"
  image.save(path)
  want = detector(path)
  assert want.anomaly_map.shape == (40, 70)
  assert want.anomaly_map.dtype == np.float32
  assert 0 <= want.image_score <= 1
  assert want.is_anomaly == (want.image_score >= 0.5)
  assert want.boxes == thresholds.find_boxes(want.anomaly_map, 0.25)
  for form in (str(path), path.read_bytes(), image, np.asarray(image), path):
    assert_same(detector(form), want)
  grey, alpha = make_image(0, mode="L"), make_image(0, mode="RGBA")
  for form in (grey, np.asarray(grey), alpha, np.asarray(alpha)):
    assert detector(form).anomaly_map.shape == (40, 70)
  deep = np.asarray(grey).astype(np.uint16) << 8
  assert_same(detector(Image.fromarray(deep)), detector(grey))
  want.anomaly_map[0] = 0  # The caller can write to it.


def test_a_score_or_pixel_equal_to_its_threshold_is_anomalous():
  anomaly_map = np.zeros((8, 8), np.float32)
  anomaly_map[2:5, 3:7] = 0.25
  for image, pixel, is_anomaly, boxes in (
    (0.5, 0.25, True, [(3, 2, 7, 5)]),
    (np.nextafter(0.5, 1), np.nextafter(np.float32(0.25), 1), False, []),
  ):
    chosen = Thresholds(float(image), float(pixel), "by hand")
    found = Detection(0.5, anomaly_map, chosen)
    assert found.is_anomaly is is_anomaly and found.boxes == boxes


@pytest.mark.parametrize("tiles, grid", (("", (1, 1)), ("auto", (2, 1))))
def test_photographs_are_turned_upright(detector, tmp_path, tiles, grid):
  upright = make_image(0, 60, 110)
  exif = Image.Exif()
  exif[0x112] = 6  # Orientation: turn the image clockwise.
  path = tmp_path / "lying.png"
  upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
  want = detector(upright, tiles)
  assert want.grid == grid
  with Image.open(path) as opened:
    for lying in (path, path.read_bytes(), opened):
      assert_same(detector(lying, tiles), want)
    assert opened.size == (110, 60)  # The caller's image is unchanged.


@pytest.mark.parametrize("tiles", ("", "auto"))
def test_results_do_not_depend_on_neighbours_or_batches(
  workdir, detector, monkeypatch, tiles
):
  """A batch can contain tiles of several images, or some tiles of one."""
  sizes = ((150, 100), (40, 40), (100, 200), (300, 90), (50, 170))
  images = [make_image(seed, *size) for seed, size in enumerate(2 * sizes)]
  monkeypatch.setattr(detector_module, "_MAX_DEVICE_IMAGES", 1)
  few = AnomalyDetector.from_workdir(workdir)  # On each of eight devices.
  together, split = detector(images, tiles), few(images, tiles)
  assert len({found.image_score for found in together}) == len(images)
  if tiles:
    grids = [(2, 2), (1, 1), (3, 2), (1, 4), (3, 1)]
    assert [found.grid for found in together] == 2 * grids
  for image, want, got in zip(images, together, split, strict=True):
    assert want.anomaly_map.shape == image.size[::-1]
    assert_same(got, want, 1e-5)
    assert_same(detector(image, tiles), want, 1e-5)
  assert detector([], tiles) == []
  with pytest.raises(InputError, match="image 9 of 9 cannot be read"):
    few([*images[:8], b"no image"], tiles)


def test_threads_compile_once_for_each_power_of_two(workdir, monkeypatch):
  fresh = AnomalyDetector.from_workdir(workdir)
  compiled, detect_anomalies = [], steps.detect_anomalies

  def note(model, variables, batch):
    compiled.append(len(batch["image"]))
    return detect_anomalies(model, variables, batch)

  monkeypatch.setattr(steps, "detect_anomalies", note)
  images = [[make_image(seed)] * (1 + seed % 2 * 8) for seed in range(8)]
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    results = list(pool.map(fresh, images))
  for index, result in enumerate(results):
    one = fresh(images[index][0])
    for detection in result:
      assert_same(detection, one, 1e-5)
  assert sorted(compiled) == [8, 16]  # Eight devices.


def test_tiles_are_scored_like_images_and_joined(detector):
  small = make_image(0, 96, 90)  # "auto" cuts only larger images.
  for tiles in ("1x1", "auto"):
    assert_same(detector(small, tiles), detector(small))
  image = make_image(1, 150, 100)
  found, whole = detector(image, tiles="2x3"), detector(image)
  parts = detector.decode(image, tiles="2x3").parts
  seen = detector([Image.fromarray(part) for part in parts])
  assert found.grid == (2, 3)
  highest = max(part.image_score for part in seen)
  assert found.image_score == pytest.approx(
    (whole.image_score + highest) / 2, rel=1e-5
  )
  blended = tiling.blend(
    [part.anomaly_map for part in seen], (2, 3), (150, 100)
  )
  assert found.anomaly_map.shape == (100, 150)
  assert found.anomaly_map.dtype == np.float32
  np.testing.assert_allclose(
    found.anomaly_map, (whole.anomaly_map + blended) / 2, rtol=1e-4, atol=1e-6
  )
  for tiles in ("3", "0x2", "99x99"):
    with pytest.raises(InputError, match=f"tiles are '{tiles}', expected auto"):
      detector(image, tiles)


def test_thresholds_of_other_prompts_do_not_apply(
  workdir, detector, tmp_path, caplog
):
  run = shutil.copytree(workdir, tmp_path / "run")
  for digest, fits in ((detector.prompts_sha256, True), ("0" * 64, False)):
    (run / "thresholds.json").unlink()
    chosen = Thresholds(0.5, 0.25, "by hand", digest)
    thresholds.write_thresholds(run, chosen)
    found = AnomalyDetector.from_workdir(run)
    assert found.thresholds == ([chosen] if fits else [])
    assert ("chosen for other prompts" in caplog.text) == (not fits)


def test_scores_that_are_not_finite_raise_an_error(detector):
  trainable = jax.tree.map(lambda leaf: leaf * np.nan, detector.trainable)
  broken = AnomalyDetector(detector.config, trainable, detector.backbone)
  with pytest.raises(
    InputError, match="not finite: the prompts or the backbone contain"
  ):
    broken(make_image(0))


def test_a_detector_from_files_has_the_same_scores_and_no_thresholds(
  workdir, detector, clip_folder, tmp_path
):
  path = tmp_path / "prompts.safetensors"
  with Checkpoints(workdir) as saved:
    _, params = saved.restore_params()
  prompts.write_prompts(path, params, read_record(workdir))
  other = AnomalyDetector.from_files(clip_folder, path)
  found = other(make_image(3))
  assert_same(found, detector(make_image(3)))
  assert found.is_anomaly is None and found.boxes is None


@pytest.mark.parametrize(
  "image, expected",
  (
    ("/nowhere.png", "/nowhere.png cannot be read: .*No such file"),
    (b"no image", "not a valid image file .PNG"),
    (np.zeros((4, 4, 3)), r"expected uint8 .* not float64 \(4, 4, 3\)"),
    (np.zeros((0, 5), np.uint8), r"expected uint8 .* not uint8 \(0, 5\)"),
    (3, "image 1 of 1 cannot be read"),
  ),
)
def test_bad_images_are_refused(detector, image, expected):
  with pytest.raises(InputError, match=expected):
    detector(image)


def test_unusable_runs_are_reported(workdir, tmp_path, clip_folder):
  with pytest.raises(InputError, match="holds no training run"):
    AnomalyDetector.from_workdir(tmp_path)
  old = shutil.copytree(workdir, tmp_path / "old")
  record = unseal((old / "run.json").read_text())
  record["config"]["evaluation"]["forgotten"] = 1
  (old / "run.json").write_text(seal(record))
  with pytest.raises(
    InputError, match="written by version .*evaluation.forgotten"
  ):
    AnomalyDetector.from_workdir(old)
  released = ROOT / "tests" / "data" / "weights" / "epoch_1.pth"
  with pytest.raises(InputError, match="not contain the config.*recipe visa"):
    AnomalyDetector.from_files(clip_folder, released)


def test_the_readmes_example_runs(workdir, tmp_path, monkeypatch, capsys):
  text = (ROOT / "README.md").read_text()
  (example,) = (
    block.partition("```")[0]
    for block in text.split("```python\n")
    if "AnomalyDetector" in block.partition("```")[0]
  )
  assert len(example.strip().splitlines()) <= 6
  named = 'from_pretrained("cops-visa")'  # This would download the prompts.
  assert named in example
  example = example.replace(named, f'from_workdir("{workdir}")')
  for name in ("photo.jpg", "a.png", "b.png"):
    make_image(0).save(tmp_path / name)
  monkeypatch.chdir(tmp_path)
  exec(example, {})
  assert "(40, 70)" in capsys.readouterr().out
