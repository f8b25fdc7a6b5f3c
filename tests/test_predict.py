"""The commands that predict and that choose thresholds."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from test_detector import make_image

from cops_jax import calibrate, images, predict, thresholds
from cops_jax.errors import InputError
from scripts import run


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  root = tmp_path_factory.mktemp("photos")
  for index, name in enumerate(("a/0.png", "a/b/0.jpg", "c.PNG", "d.bmp")):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    make_image(index).save(path)
  (root / "notes.txt").write_text("no image")
  (root / "broken.png").write_bytes(b"no image")
  return root


@pytest.fixture
def workdir(trained, tmp_path):
  return shutil.copytree(trained[0], tmp_path / "run")


def test_find_images(photos):
  def names(*places):
    found = images.find_images(places)
    return [path.relative_to(photos).as_posix() for path in found]

  everything = ["a/0.png", "a/b/0.jpg", "broken.png", "c.PNG", "d.bmp"]
  assert names(str(photos)) == everything
  assert names(f"{photos}/*.bmp", f"{photos}/a", f"{photos}/d.bmp") == [
    "d.bmp",
    *everything[:2],
  ]
  for place in ("/nowhere", f"{photos}/*.gif"):
    with pytest.raises(InputError, match="is no file, folder or pattern"):
      images.find_images([place])


def test_photos_in_a_folder(photos, workdir, tmp_path):
  """Without thresholds, and with those of normal images; one is broken."""
  out = tmp_path / "out"
  command = ("-m", "cops_jax.predict", photos, f"--workdir={workdir}")
  code, lines, err = run(*command)
  assert code == 1
  assert "no thresholds were chosen" in err and "5/5 images" in err
  assert err.endswith("1 of 5 images cannot be read\n")
  before = {row["path"]: row for row in map(json.loads, lines.splitlines())}
  assert all(row.get("verdict") is None for row in before.values())

  normal = [photos / "a", photos / "c.PNG"]
  code, text, err = run(
    *("-m", "cops_jax.calibrate", f"--workdir={workdir}", "--normal", *normal)
  )
  assert code == 0, err
  assert "at most 1.00% false alarms on 3 normal images" in text
  chosen = thresholds.read_thresholds(workdir)

  code, lines, err = run(*command, f"--out={out}", "--save_maps")
  assert code == 1 and "Traceback" not in err
  assert (out / "predictions.jsonl").read_text() == lines
  rows = [json.loads(line) for line in lines.splitlines()]
  assert [row["path"] for row in rows] == list(before)
  for row in rows:
    if row["path"].endswith("broken.png"):
      assert "no image format that PIL reads" in row["error"]
      continue
    assert row["image_score"] == before[row["path"]]["image_score"]
    assert row["threshold"] == chosen.image
    assert row["threshold_method"] == chosen.method
    is_anomaly = row["image_score"] >= chosen.image
    assert row["verdict"] == ("anomaly" if is_anomaly else "normal")
    if row["path"].startswith((f"{photos}/a/", f"{photos}/c")):
      assert row["verdict"] == "normal" and row["boxes"] == []
  for name in ("a-0", "a-b-0", "c", "d"):
    with Image.open(out / f"{name}.png") as picture:
      assert picture.size == (70, 40)
    assert np.load(out / f"{name}.npy").shape == (40, 70)
  assert len(list(out.iterdir())) == 9


def test_thresholds_of_labelled_data(workdir, tmp_path, data_dir, capsys):
  def choose(*arguments):
    calibrate.main([f"--workdir={workdir}", *arguments])
    return thresholds.read_thresholds(workdir), capsys.readouterr().out

  root = tmp_path / "parts"
  for index in range(12):
    path = root / "test" / ("good", "bad")[index % 2] / f"{index}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    make_image(index).save(path)
  from cops_jax.detector import AnomalyDetector

  files = sorted((root / "test").glob("*/*.png"))
  scores = np.array(
    [row.image_score for row in AnomalyDetector.from_workdir(workdir)(files)]
  )
  labels = np.array([path.parent.name == "bad" for path in files])

  def f1(threshold):
    flagged = scores >= threshold
    return 2 * (flagged & labels).sum() / (flagged.sum() + labels.sum())

  chosen, text = choose(f"--data=folder:{root}")
  assert f1(chosen.image) == max(map(f1, scores))
  assert "largest F1 on 12 images of parts" in text
  chosen, _ = choose(f"--data=folder:{root}", "--false_alarms=0.2")
  assert (scores[~labels] >= chosen.image).sum() == 1

  broken = root / "test" / "good" / "broken.png"
  broken.write_bytes(b"no image")
  with pytest.raises(SystemExit, match="good/broken.png .* cannot be read: no"):
    choose(f"--data=folder:{root}")
  shutil.rmtree(root / "test" / "good")
  for arguments, expected in (
    ((f"--data=folder:{root}",), "6 anomalous and 0 normal images"),
    ((f"--data=folder:{root}", "--false_alarms=0.1"), "no normal images"),
    ((f"--data=folder:{root}", "--false_alarms=1.5"), "false_alarms is 1.5"),
    (("--normal", "/nowhere"), "/nowhere is no file, folder"),
  ):
    with pytest.raises(SystemExit, match=f"^error: .*{expected}"):
      choose(*arguments)
  assert thresholds.read_thresholds(workdir) == chosen


def test_names_of_pictures_are_unique(tmp_path):
  paths = [tmp_path / name for name in ("a/x.png", "a/x.jpg", "b/x.png")]
  assert list(predict._names(paths).values()) == ["a-x", "a-x-2", "b-x"]
