"""Training and evaluation on folders of images."""

import json
import logging
import shutil

import numpy as np
import pytest
from PIL import Image

from cops_jax.errors import InputError
from cops_jax.images.masks import CUT, EMPTY, UPRIGHT
from helpers.listings import write_meta
from helpers.original_layouts import write_parts


@pytest.fixture
def workable(config, tmp_path):
  """Custom data to train on, and a config with a step for each image."""
  tree = write_parts(tmp_path / "parts")
  config.train.dataset = f"folder:{tree.root}"
  config.train.batch_size = 1
  config.evaluation.datasets = (f"folder:{tree.root}",)
  return tree, config


def test_a_folder_and_a_list_have_the_same_scores(workable, trained, tmp_path):
  from cops_jax.evaluation import many
  from cops_jax.reporting import report
  from cops_jax.reporting.tables import format_table

  tree, config = workable
  write_meta(tree)
  (tree.root / "nut/validation").mkdir()
  other = write_parts(tmp_path / "other" / "parts")
  config.evaluation.datasets = (
    f"meta_json:{tree.root}",
    f"folder:{tree.root}",
    f"folder:{other.root}",
  )
  evaluated = many.evaluate(config, tmp_path / "run", checkpoint=trained[0])
  found = evaluated.results
  assert list(found) == ["parts-meta_json", "parts"]
  report.write(tmp_path / "run", evaluated)
  for text in (
    format_table(found),
    (tmp_path / "run" / "report.html").read_text(),
    (tmp_path / "run" / "results.json").read_text(),
  ):
    assert text.count("nut: validation is not read") == 1
  assert len(found["parts"].images) == 6
  scores = [
    {image.path: image.image_score for image in result.images}
    for result in found.values()
  ]
  assert scores[0] == scores[1]
  assert 0 <= found["parts"].mean["pixel_auroc"] <= 1
  (reason,) = evaluated.failed.values()
  assert "also called 'parts'" in reason


def test_evaluation_and_calibration_use_the_same_masks(
  workable, trained, tmp_path, monkeypatch, caplog
):
  from cops_jax import calibrate, datasets, metrics
  from cops_jax.detector import AnomalyDetector
  from cops_jax.evaluation import many

  tree, config = workable
  dent, folder = (
    tree.root / "nut" / n for n in ("test/dent", "ground_truth/dent")
  )
  Image.new("L", (11, 9)).save(folder / "0.png")
  exif = Image.Exif()
  for name, exif[0x112] in (("1.png", 6), ("2.png", 3)):
    Image.open(dent / name).save(dent / name, exif=exif)
  alpha = Image.new("L", (9, 11))
  alpha.paste(255, (0, 0, 9, 3))
  upright = Image.new("LA", alpha.size, 255)
  upright.putalpha(alpha)
  upright.save(folder / "1.png")
  soft = Image.new("L", (11, 9))
  soft.paste(255, (2, 1, 6, 5))
  (folder / "2.png").unlink()
  soft.save(folder / "2.jpg", quality=75)

  seen = []
  add = metrics.PixelMetrics.add

  def record(state, anomaly_map, mask):
    seen.append(mask)
    add(state, anomaly_map, mask)

  monkeypatch.setattr(metrics.PixelMetrics, "add", record)
  monkeypatch.setattr(logging.getLogger("cops_jax"), "propagate", True)
  config.feature_cache.dtype = "float32"  # Batches then have no images.
  config.features_dir = str(tmp_path / "features")
  found = many.evaluate(config, tmp_path / "run", checkpoint=trained[0])
  result = found.results["parts"]
  evaluated, seen[:] = list(seen), []
  detector = AnomalyDetector.from_workdir(trained[0])
  examples = datasets.load(f"folder:{tree.root}", "test")
  caplog.clear()
  calibrate.from_labelled_data(detector, examples)
  np.testing.assert_array_equal(seen, evaluated)
  turned = soft.rotate(180)
  for mask, drawn in zip(seen[1:3], (alpha, turned), strict=True):
    drawn = drawn.resize(mask.shape, Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(mask, np.asarray(drawn) > 127)
  assert not np.any(seen[:1] + seen[3:])
  for note in (
    f"1 image: {EMPTY} (nut/test/dent/0.png: 11 x 9 pixels)",
    f"1 image: {UPRIGHT} (nut/test/dent/1.png: 9 x 11 pixels)",
    f"1 image: {CUT} (nut/test/dent/2.png: from 0 to 255)",
  ):
    assert note in result.notes
    assert note in caplog.messages
  assert result.num_masks == result.categories["nut"].num_masks == 2


def test_a_truncated_image_ends_a_run_or_is_skipped(workable, tmp_path):
  from cops_jax import training
  from cops_jax.evaluation import many
  from cops_jax.reporting import report
  from cops_jax.runs import checkpoints, metrics_log

  tree, config = workable
  workdir = tmp_path / "run"
  path = tree.root / "nut/test/dent/1.png"
  path.write_bytes(path.read_bytes()[:60])
  config.train.log_every_steps = 1
  with pytest.raises(InputError, match="dent/1.png of data set 'parts'"):
    training.train(config, workdir)
  # The earlier steps are saved.
  steps = [row["step"] for row in metrics_log.read_metrics(workdir)]
  with checkpoints.Checkpoints(workdir) as saved:
    assert saved.latest_step() == steps[-1] > 0
  # The run resumes with the option to skip unreadable files.
  config.input.unreadable_files = "skip"
  assert int(training.train(config, workdir).step) == 6
  skipped = json.loads((workdir / "skipped_files.json").read_text())
  assert list(skipped) == ["nut/test/dent/1.png"]
  config.input.unreadable_files = "error"
  (reason,) = many.evaluate(config, workdir).failed.values()
  assert "dent/1.png of data set 'parts'" in reason
  config.input.unreadable_files = "skip"
  found = many.evaluate(config, workdir)
  report.write(workdir, found)
  assert len(found.results["parts"].images) == 5
  stored = json.loads((workdir / "results.json").read_text())
  assert stored["datasets"]["parts"]["skipped_files"].keys() == skipped.keys()
  for path in tree.root.rglob("test/*/*.png"):
    path.write_bytes(b"")
  (reason,) = many.evaluate(config, workdir).failed.values()
  assert "no image of 'parts' can be read. The first is nut/test/" in reason
  with pytest.raises(InputError, match="no image of 'parts' can be read"):
    training.train(config, tmp_path / "other")


def test_training_without_masks_is_refused(tree, config, tmp_path):
  from cops_jax import training

  config.train.dataset = f"folder:{tree.root}"
  with pytest.raises(InputError, match="cannot be trained on.*have no masks"):
    training.train(config, tmp_path / "some")
  config.train.dataset = f"folder:{tree.root}/short"
  with pytest.raises(InputError, match="'short' cannot be trained on"):
    training.train(config, tmp_path / "none")
  assert not (tmp_path / "none").exists()  # It is refused before any work.


def test_a_run_is_not_resumed_on_changed_images(workable, tmp_path):
  from cops_jax import training

  tree, config = workable
  workdir = tmp_path / "run"
  config.train.num_epochs = 0
  training.train(config, workdir)
  training.train(config, workdir)
  dent = tree.root / "nut/test/dent"
  for folder in (dent, tree.root / "nut/ground_truth/dent"):
    shutil.copy(folder / "1.png", folder / "9.png")
  with pytest.raises(InputError, match="other images. .*--allow_other_data"):
    training.train(config, workdir)
  training.train(config, workdir, allow_other_data=True)
