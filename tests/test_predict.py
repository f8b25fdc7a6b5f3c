"""The commands that predict and that choose thresholds."""

import dataclasses
import itertools
import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from cops_jax import predict, thresholds
from cops_jax.commands import calibrate as calibrate_command
from cops_jax.commands import predict as predict_command
from cops_jax.detector import AnomalyDetector
from cops_jax.errors import InputError
from cops_jax.images import finding
from helpers.images import make_image, write_folder, write_images


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  root = tmp_path_factory.mktemp("photos")
  write_images(root, "a/0.png", "a/b/0.jpg", "c.PNG", "d.bmp")
  (root / "notes.txt").write_text("no image")
  for name in ("broken.png", "e.AVIF", "f.gif"):
    (root / name).write_bytes(b"no image")
  return root


@pytest.fixture
def workdir(trained, tmp_path):
  return shutil.copytree(trained[0], tmp_path / "run")


def test_images_are_found_by_path_folder_and_pattern(photos):
  def names(*places):
    found = finding.find_images(places)
    return [path.relative_to(photos).as_posix() for path in found]

  everything = ["a/0.png", "a/b/0.jpg", "broken.png", "c.PNG", "d.bmp"]
  assert names(str(photos)) == everything
  assert names(f"{photos}/*.bmp", f"{photos}/a", f"{photos}/d.bmp") == [
    "d.bmp",
    *everything[:2],
  ]
  inside = f"{photos}/a/../a/0.png"
  assert names(inside, f"{photos}/a/0.png") == ["a/../a/0.png"]
  assert names(f"{photos}/a/**/*.jpg", f"{photos}/**/0.png") == [
    "a/b/0.jpg",
    "a/0.png",
  ]
  for place in ("/nowhere", f"{photos}/*.tga"):
    with pytest.raises(InputError, match="is not a file, folder or pattern"):
      finding.find_images([place])
  for place in ("~no_such_user/a.png", f"{photos}/{'a' * 300}/*.png"):
    with pytest.raises(InputError, match="a.png|too long|is not a file"):
      finding.find_images([place])


SKIPPED = r", 2 skipped \(.avif, .gif\)"


def rows_of(text):
  return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def predict_photos(photos, workdir, capsys):
  """Runs the command on images with a broken one; returns rows and messages."""

  def call(*flags):
    capsys.readouterr()
    with pytest.raises(SystemExit, match=f"^5 images: .*1 unreadable{SKIPPED}"):
      predict_command.main([str(photos), f"--workdir={workdir}", *flags])
    lines, messages = capsys.readouterr()
    return rows_of(lines), messages

  return call


def test_a_folder_is_predicted_with_and_without_thresholds(
  photos, workdir, predict_photos, tmp_path, capsys
):
  before, messages = predict_photos()
  assert "no thresholds were chosen" in messages and "5/5 images" in messages
  assert f"cops calibrate --workdir={workdir} --normal" in messages
  assert all(row.get("verdict") is None for row in before)

  normal = [str(photos / "a"), str(photos / "c.PNG")]
  calibrate_command.main([f"--workdir={workdir}", "--normal", *normal])
  text, messages = capsys.readouterr()
  assert "true rate at most 70.8% (95% confidence)" in text
  assert "false alarms: 0 of 3, 0.0% (95% interval 0.0% to 70.8%)" in text
  assert "misses" not in text
  (chosen,) = thresholds.read_thresholds(workdir)
  assert (
    chosen.false_alarms == thresholds.estimate(0, 3) and chosen.misses is None
  )

  out = tmp_path / "out"
  rows, _ = predict_photos(f"--out={out}", "--save_maps")
  assert rows == read_rows(out)
  for row, earlier in zip(rows, before, strict=True):
    assert row["path"] == earlier["path"]
    if row["path"].endswith("broken.png"):
      assert "not a valid image file (PNG" in row["error"]
      continue
    assert row["image_score"] == earlier["image_score"]
    assert row["threshold"] == chosen.image
    assert row["threshold_method"] == chosen.method
    is_anomaly = row["image_score"] >= chosen.image
    assert row["verdict"] == ("anomaly" if is_anomaly else "normal")
    if row["path"].startswith((f"{photos}/a/", f"{photos}/c")):
      assert row["verdict"] == "normal" and row["boxes"] == []
  detector = AnomalyDetector.from_workdir(workdir)
  sources = ("a/0.png", "a/b/0.jpg", "c.PNG", "d.bmp")
  for name, source in zip(("a-0", "a-b-0", "c", "d"), sources, strict=True):
    want = detector(photos / source)
    found = np.load(out / "maps" / f"{name}.npy")
    np.testing.assert_allclose(found, want.anomaly_map, atol=1e-6)
    with Image.open(out / "pictures" / f"{name}.jpg") as picture:
      shown = np.asarray(picture).astype(int)
    drawn = np.asarray(want.picture(photos / source))
    assert np.abs(shown - drawn).mean() < 10
  assert len(list(out.rglob("*.*"))) == 4 + 2 * 4
  page = (out / "index.html").read_text("utf-8")
  assert re.search(f"<h1>5 images: . anom.*, 1 unreadable{SKIPPED}</h1>", page)
  with pytest.raises(InputError, match="has 1 x 2 pixels, but .* 70 x 40"):
    want.picture(Image.new("L", (1, 2)))


def read_rows(folder):
  return rows_of((folder / "predictions.jsonl").read_text("utf-8"))


def test_the_output_folder_can_be_among_the_images(
  trained, tmp_path, monkeypatch, capsys
):
  """Pictures in it are not input, and Ctrl-C keeps the finished rows."""
  detector = AnomalyDetector.from_workdir(trained[0])
  monkeypatch.setattr(
    predict_command.flags, "open_detector", lambda _: detector
  )
  write_images(tmp_path, *(f"{index}.png" for index in range(4)))
  out = tmp_path / "found"

  def call(folder):
    predict_command.main([str(tmp_path), "--workdir=run", f"--out={folder}"])
    return capsys.readouterr()

  for _ in range(2):
    text, messages = call(out)
    assert messages.endswith(f"4 images; report: {out}/index.html\n")
    assert len(read_rows(out)) == len(text.splitlines()) == 4
  with pytest.raises(SystemExit, match="0 contains input images"):
    call(tmp_path)

  draw, count = predict._draw, itertools.count()

  def interrupted(*arguments):
    if next(count) == 2:
      raise KeyboardInterrupt
    return draw(*arguments)

  monkeypatch.setattr(predict, "_draw", interrupted)
  with pytest.raises(SystemExit) as ended:
    call(out)
  assert ended.value.code == 130
  rows = read_rows(out)
  assert [row["picture"] for row in rows] == [
    path.relative_to(out).as_posix()
    for path in sorted((out / "pictures").iterdir())
  ]
  assert (
    len(rows) == 2 and "<h1>2 images</h1>" in (out / "index.html").read_text()
  )
  assert len(list(tmp_path.glob("*.png"))) == 4


def test_thresholds_from_labelled_data_are_optimal(
  workdir, tmp_path, data_dir, capsys
):
  def choose(*arguments):
    calibrate_command.main([f"--workdir={workdir}", *arguments])
    (chosen,) = thresholds.read_thresholds(workdir)
    return chosen, capsys.readouterr().out

  root = tmp_path / "parts"
  write_folder(root, 12, has_masks=False)
  files = sorted((root / "test").glob("*/*.png"))
  labels = np.array([path.parent.name == "bad" for path in files])
  detector = AnomalyDetector.from_workdir(workdir)
  size = (detector.image_size,) * 2
  decoded = (detector.decode(path) for path in files)
  found = list(
    detector.detect(dataclasses.replace(image, size=size) for image in decoded)
  )
  scores = np.array([row.image_score for row in found])
  maps = np.stack([row.anomaly_map for row in found])

  def balanced(threshold):
    return (scores[labels] >= threshold).mean() + (
      scores[~labels] < threshold
    ).mean()

  def f1(threshold, values, truth):
    flagged = values >= threshold
    return 2 * (flagged & truth).sum() / (flagged.sum() + truth.sum())

  chosen, text = choose(f"--data=folder:{root}")
  assert balanced(chosen.image) == max(map(balanced, scores))
  assert chosen.prompts_sha256 == detector.prompts_sha256
  assert "largest balanced accuracy on 12 images of parts" in text
  for kind, errors, is_wrong in (
    ("false alarms", chosen.false_alarms, scores[~labels] >= chosen.image),
    ("misses", chosen.misses, scores[labels] < chosen.image),
  ):
    assert errors == thresholds.estimate(int(is_wrong.sum()), 6)
    assert f"{kind}: {errors}\n" in text
  # Without masks, as many normal images have regions as are called anomalous.
  shows_region = maps[~labels].max((1, 2)) >= chosen.pixel
  assert shows_region.sum() == chosen.false_alarms.count
  assert f"{shows_region.sum()} of 6 normal images\n" in text
  again, text = choose(
    *("--normal", str(root / "test" / "good")),
    *("--anomalous", str(root / "test" / "bad")),
  )
  assert dataclasses.replace(again, method=chosen.method) == chosen
  assert "largest balanced accuracy on 6 normal and 6 anomalous images" in text
  assert f"replaced: {chosen}\n" in text
  chosen, _ = choose(f"--data=folder:{root}", "--false_alarms=0.2")
  assert (scores[~labels] >= chosen.image).sum() == 1
  assert chosen.false_alarms.count == 1
  assert chosen.misses.count == (scores[labels] < chosen.image).sum()
  truth = np.zeros(maps.shape, bool)
  truth[labels] = maps[labels] >= 0.8 * maps[labels].max((1, 2), keepdims=True)
  for path, mask in zip(files, truth, strict=True):
    if path.parent.name == "bad":
      name = root / "ground_truth" / "bad" / f"{path.stem}_mask.png"
      name.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(np.uint8(255) * mask).save(name)
  chosen, _ = choose(f"--data=folder:{root}")
  candidates = np.quantile(maps, np.linspace(0, 1, 200))
  best = max(f1(value, maps, truth) for value in candidates)
  assert f1(chosen.pixel, maps, truth) >= best - 1e-3

  broken = root / "test" / "good" / "broken.png"
  broken.write_bytes(b"no image")
  with pytest.raises(SystemExit, match="good/broken.png cannot be read: it"):
    choose(f"--data=folder:{root}")
  shutil.rmtree(root / "test" / "good")
  for arguments, expected in (
    ((f"--data=folder:{root}",), "6 anomalous and 0 normal images"),
    ((f"--data=folder:{root}", "--false_alarms=0.1"), "no normal images"),
    (("--normal", "/nowhere"), "/nowhere is not a file, folder"),
    (
      ("--normal", str(root), "--anomalous", f"{root}/test/bad"),
      "--normal and --anomalous have 6 images in common, such as",
    ),
  ):
    with pytest.raises(SystemExit, match=f"^error: .*{expected}"):
      choose(*arguments)
  assert thresholds.read_thresholds(workdir) == [chosen]


def test_verdicts_need_thresholds_for_the_same_tiles(workdir, tmp_path, capsys):
  for index, size in enumerate(((40, 40), (150, 90), (80, 210))):
    make_image(index, *size).save(tmp_path / f"{index}.png")
  place = [f"--workdir={workdir}", "--tiles=auto"]

  def find():
    out = tmp_path / "out"
    capsys.readouterr()
    predict_command.main([f"{tmp_path}/*.png", *place, f"--out={out}"])
    lines, messages = capsys.readouterr()
    with Image.open(out / "pictures/2.jpg") as picture:
      assert picture.width >= 2 * 80 and picture.height >= 210
    return rows_of(lines), messages

  detector = AnomalyDetector.from_workdir(workdir)
  rows, messages = find()
  assert f"{workdir} --normal GOOD --tiles=auto" in messages
  assert [row.get("tiles") for row in rows] == [None, "1x2", "3x1"]
  for index, row in enumerate(rows):
    found = detector(tmp_path / f"{index}.png", "auto")
    assert row["image_score"] == pytest.approx(found.image_score, rel=1e-4)

  normal = ["--normal", f"{tmp_path}/0.png", f"{tmp_path}/1.png"]
  calibrate_command.main([f"--workdir={workdir}", *normal])
  unfit, messages = find()
  assert {row["verdict"] for row in unfit} == {None}
  assert "thresholds were chosen without tiles, but images are" in messages
  calibrate_command.main([*place, *normal])
  assert "json, next to those without tiles\n" in capsys.readouterr().out
  whole, chosen = thresholds.read_thresholds(workdir)
  assert whole.tiles == ""
  assert chosen.tiles == "auto" and chosen.method.endswith("with tiles auto")
  scores = [row["image_score"] for row in rows]
  assert chosen.image == pytest.approx(max(scores[:2]), abs=1e-3)
  rows, _ = find()
  assert [row["verdict"] for row in rows[:2]] == ["normal", "normal"]
  assert rows[2]["threshold"] == chosen.image


def test_verdicts_need_thresholds_for_the_same_reference_images(
  workdir, tmp_path, capsys
):
  write_images(tmp_path, "good/0.png", "good/1.png", "2.png", "3.png", "4.png")
  good, place = f"--normal_images={tmp_path}/good", f"--workdir={workdir}"
  normal = ["--normal", f"{tmp_path}/2.png", f"{tmp_path}/3.png"]
  with pytest.raises(
    SystemExit, match="^error: --normal and .* have 1 image in"
  ):
    calibrate_command.main([place, good, *normal, f"{tmp_path}/good/0.png"])
  assert not thresholds.read_thresholds(workdir)
  calibrate_command.main([place, good, *normal])
  (chosen,) = thresholds.read_thresholds(workdir)
  assert chosen.method.endswith("with reference images (2)")
  capsys.readouterr()
  predict_command.main([str(tmp_path), place, good])
  lines, messages = capsys.readouterr()
  assert "the images include reference images (--normal_images)" in messages

  plain = AnomalyDetector.from_workdir(workdir)
  files = [tmp_path / "good" / f"{index}.png" for index in (1, 0)]
  detector = plain.with_normal_images(files)
  assert chosen.prompts_sha256 == detector.prompts_sha256
  assert chosen.normal_images_sha256 == detector.normal_images_sha256
  rows = rows_of(lines)
  found = detector([row["path"] for row in rows])
  for row, detection in zip(rows, found, strict=True):
    assert row["image_score"] == round(detection.image_score, 6)
    assert row["threshold"] == detection.thresholds.image == chosen.image

  capsys.readouterr()
  for other, now in (
    (plain, "without reference images"),
    (plain.with_normal_images(tmp_path / "2.png"), "with reference images"),
  ):
    assert other.thresholds_for("") is None
    messages = capsys.readouterr().err
    assert "the thresholds were chosen without tiles, with ref" in messages
    assert f"are scored without tiles, {now}" in messages
  (tmp_path / "empty").mkdir()
  empty = f"--normal_images={tmp_path}/empty"
  with pytest.raises(SystemExit, match="^error: .*empty is not a file, folder"):
    predict_command.main([str(tmp_path), place, empty])
  for images, expected in (
    ([b"no image"], "^reference image 1 of 1 cannot be read: "),
    ([], "^there are no reference images"),
  ):
    with pytest.raises(InputError, match=expected):
      plain.with_normal_images(images)


def test_hidden_files_are_skipped_and_names_can_be_any_bytes(
  workdir, tmp_path, capsys
):
  """The hidden files are those of macOS, Jupyter, Windows and a NAS."""
  folder = tmp_path / "photos"
  (folder / "@eaDir").mkdir(parents=True)
  (folder / ".ipynb_checkpoints").mkdir()
  name = os.fsdecode(b"caf\xe9.png")
  for index, path in enumerate((name, "@eaDir/a.png", "._a.png", "Thumbs.db")):
    make_image(index).save(folder / path, "PNG")
  skipped = "hidden or system files skipped: "
  place, out = f"--workdir={workdir}", tmp_path / "out"
  for images in ((str(folder),), (f"{folder}/**/*",)):
    predict_command.main([*images, place, f"--out={out}"])
    text, messages = capsys.readouterr()
    (row,) = rows_of(text)
    assert row["path"] == f"{folder}/caf\\xe9.png" and "image_score" in row
    assert skipped in messages
  assert [path.name for path in out.rglob("*.jpg")] == ["caf\\xe9.jpg"]
  calibrate_command.main([place, "--normal", str(folder)])
  text, messages = capsys.readouterr()
  assert "false alarms: 0 of 1," in text and f"{skipped}4, such as" in messages
  (folder / name).write_bytes(b"no image")
  with pytest.raises(SystemExit, match="^1 image: 1 unreadable$"):
    predict_command.main([str(folder), place])
  row = json.loads(capsys.readouterr().out)
  assert row["error"].startswith(f"{folder}/caf\\xe9.png cannot be read: it")


def test_names_of_pictures_are_unique(tmp_path):
  """A name contains the folders below the folder that all paths share."""
  names = ("a/x.png", "a/x.jpg", "b/x.png", "deep/../b/c/y.png")
  paths = [tmp_path / name for name in names]
  assert predict._names(paths) == ["a-x", "a-x-2", "b-x", "b-c-y"]
  paths = [tmp_path / f"{chr(0x3042) * 80}.{kind}" for kind in "ab"]
  names = predict._names(paths)
  assert len(set(names)) == 2
  assert all(len(f"{name}.png".encode()) < 220 for name in names)
