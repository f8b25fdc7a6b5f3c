"""Authors' prompts by name, downloaded from a local server."""

import hashlib
import json
import re
import types

import chex
import jax
import numpy as np
import pytest

from cops_jax import thresholds
from cops_jax.detector import AnomalyDetector
from cops_jax.errors import InputError
from cops_jax.training import setup
from cops_jax.weights import (
  authors_names,
  pretrained,
  prompts,
  published,
  torch_files,
)
from helpers import hub
from helpers.images import make_image, write_folder
from helpers.scripts import call

ORIGIN = "cops-visa, the authors' prompts"
RECIPE = """
from helpers.config import make_config

def get_config():
  return make_config({!r}, {!r})
"""
PLACE = "owner/code/commit/results/epoch_10.pth"


def blob_hash(content):
  return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture(scope="module")
def own(request):
  """The detector of the run whose prompts the server has in authors' format."""
  return AnomalyDetector.from_pretrained(request.getfixturevalue("published"))


@pytest.fixture
def authors(own, clip_folder, data_dir, tmp_path, monkeypatch):
  """The content of the authors' file, the path of its copy, and its server."""
  tensors = authors_names.to_authors_names(own.trainable, "cops")
  tensors = {
    name: array
    for name, array in tensors.items()
    if not name.startswith(authors_names.ENCODER)
  }
  torch_files.write(tmp_path / "file.pth", tensors, "prompt_learner")
  content = (tmp_path / "file.pth").read_bytes()
  recipe = tmp_path / "tiny.py"
  recipe.write_text(RECIPE.format(str(clip_folder), data_dir))
  row = published.AuthorsFile(PLACE, str(recipe), (blob_hash(content),))
  monkeypatch.setitem(published.AUTHORS_FILES, "cops-visa", row)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
    monkeypatch.delenv(name, raising=False)
  for name in ("NO_PROXY", "no_proxy"):
    monkeypatch.setenv(name, "")
  path = tmp_path / "cache/cops_jax/prompts/cops-visa/epoch_10.pth"
  with hub.serve({f"/raw/{PLACE}": (200, content, {})}, hub.Files) as server:
    servers = (f"{server.address}/raw", f"{server.address}/media")
    monkeypatch.setattr(published, "_SERVERS", servers)
    yield types.SimpleNamespace(content=content, path=path, server=server)


@pytest.fixture
def kept(authors):
  """The fixture `authors` with a copy of the file put there by hand."""
  authors.path.parent.mkdir(parents=True)
  authors.path.write_bytes(authors.content)
  return authors


def test_authors_prompts_are_downloaded_once_and_used(authors, own):
  detector = AnomalyDetector.from_pretrained("cops-visa")
  assert detector.origin == ORIGIN and not detector.thresholds
  images = [make_image(seed) for seed in range(2)]
  for got, want in zip(detector(images), own(images), strict=True):
    assert got.image_score == want.image_score
    np.testing.assert_array_equal(got.anomaly_map, want.anomaly_map)
  assert list(authors.path.parent.iterdir()) == [authors.path]
  assert authors.server.asked == [f"/raw/{PLACE}"]
  authors.server.repositories.clear()
  assert pretrained.find("cops-visa") == authors.path
  assert pretrained.find_start("cops-visa") == authors.path
  assert len(authors.server.asked) == 1
  # A copy is recognized in any place.
  copy = authors.path.rename(authors.path.with_name("mine.pth"))
  assert prompts.find_record(copy).origin == ORIGIN


POINTER = (
  b"version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 9\n" % 0
)


@pytest.mark.parametrize(
  "raw, media, reason",
  (
    ((404, b"", {}), (404, b"", {}), "HTTPError"),
    ((200, b"PK", {}), None, f"its Git blob hash is {blob_hash(b'PK')}, not "),
    ((200, b"PK", {"Content-Length": 9}), None, "ChunkedEncodingError|Connect"),
    ((200, POINTER, {}), (404, b"", {}), "HTTPError"),
    ((200, POINTER, {}), (200, POINTER, {}), "it is a Git LFS pointer to that"),
    ("proxy", None, "ProxyError"),
    ("no network", None, "ConnectionError"),
  ),
)
def test_a_failed_download_is_reported_and_leaves_no_file(
  authors, raw, media, reason, monkeypatch
):
  if raw == "proxy":
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
  elif raw == "no network":
    monkeypatch.setattr(published, "_SERVERS", ("http://127.0.0.1:1",) * 2)
  else:
    answers = {f"/raw/{PLACE}": raw, f"/media/{PLACE}": media}
    authors.server.repositories = answers
  with pytest.raises(InputError) as caught:
    pretrained.find("cops-visa")
  assert re.fullmatch(
    rf"cops-visa cannot be downloaded from \S+/{PLACE} \(({reason}).*\):"
    rf" download it in another way and put it at {authors.path}, or set"
    " HTTPS_PROXY",
    str(caught.value),
  )
  if reason == "HTTPError":
    caught.value.__cause__.response.close()
  assert list(authors.path.parent.iterdir()) == []


def test_a_file_in_git_lfs_is_downloaded(authors):
  authors.server.repositories = {
    f"/raw/{PLACE}": (200, POINTER, {}),
    f"/media/{PLACE}": (200, authors.content, {}),
  }
  assert pretrained.find("cops-visa").read_bytes() == authors.content


def test_a_file_put_there_by_hand_is_used_if_its_hash_is_known(
  kept, monkeypatch
):
  sha256 = hashlib.sha256(kept.content).hexdigest()
  row = published.AUTHORS_FILES["cops-visa"]
  for hashes in (row.hashes, ("0" * 40, sha256)):
    changed = row._replace(hashes=hashes)
    monkeypatch.setitem(published.AUTHORS_FILES, "cops-visa", changed)
    assert pretrained.find("cops-visa") == kept.path
    assert prompts.find_record(kept.path).origin == ORIGIN
  for content, reason in (
    (POINTER, "it is a Git LFS pointer to that file"),
    (b"PK", f"its Git blob hash is {blob_hash(b'PK')}, not {'0' * 40}"),
  ):
    kept.path.write_bytes(content)
    with pytest.raises(InputError, match=f"of cops-visa: {reason}. Delete it"):
      pretrained.find("cops-visa")
  kept.path.unlink()
  kept.path.mkdir()
  with pytest.raises(InputError, match="cannot be read .Is a directory.. Dele"):
    pretrained.find("cops-visa")
  assert kept.server.asked == []


def test_a_local_folder_with_the_name_comes_first(
  published, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "cops-visa").symlink_to(published)
  found = pretrained.find("cops-visa")
  assert str(found) == "cops-visa/prompts.safetensors"


def test_calibration_writes_a_folder_of_authors_prompts(kept, own, tmp_path):
  write_folder(tmp_path / "few", 4)
  images, out = tmp_path / "few", tmp_path / "some" / "folder"
  flags = ("--pretrained=cops-visa", "--normal", images)
  code, _, err = call("calibrate", *flags)
  assert code == 2 and "cops-visa is not a local folder: set --out" in err
  code, _, err = call("predict", images, "--pretrained=cops-visa")
  assert "cops calibrate --pretrained=cops-visa --normal GOOD --out=" in err
  code, shown, err = call("calibrate", *flags, f"--out={out}")
  assert code == 0, err
  detector = AnomalyDetector.from_pretrained(out)
  assert detector.origin == ORIGIN
  assert detector.thresholds == thresholds.read_thresholds(out) != []
  record = prompts.find_record(out / "prompts.safetensors")
  assert record.backbone_sha256 == own.backbone.sha256
  for path in (kept.path, out / "prompts.safetensors"):
    _, shown, _ = call("weights", "inspect", path)
    assert f"run:     {ORIGIN}, trained on demo" in shown


def test_evaluation_reports_the_origin_of_the_prompts(
  kept, own, data_dir, tmp_path
):
  data = write_folder(tmp_path / "few", 4)
  flags = [
    *("--pretrained=cops-visa", f"--workdir={tmp_path}/found"),
    *(f"--datasets={data}", f"--config.data_dir={data_dir}"),
    "--config.model.smoothing_window_patches=1",
  ]
  code, _, err = call("evaluate", *flags)
  assert code == 0, err
  results = json.loads((tmp_path / "found" / "results.json").read_text())
  assert results["checkpoint"] == str(kept.path)
  assert results["trained_on"] == f"demo_auxiliary: {ORIGIN}"
  loaded, _ = prompts.load_prompts(kept.path, own.trainable)
  assert results["prompts_sha256"] == prompts.hash_prompts(loaded)
  assert call("evaluate", *flags, "--checkpoint=epoch_10.pth")[0] == 2


def test_training_starts_from_authors_prompts(kept, own):
  config, params = own.config, jax.device_get(own.trainable)
  start = setup.read_start(config, own.backbone, params, "cops-visa", False)
  chex.assert_trees_all_equal(start, params)


def test_the_list_has_every_file_of_the_authors():
  code, shown, _ = call("weights", "list")
  assert code == 0
  for name, row in published.AUTHORS_FILES.items():
    assert f"\n{name}: {name.partition('-')[0]}, trained" in f"\n{shown}"
    kept = str(published.kept_path(name))
    for part in (row.place, *row.hashes, "licence MIT", row.recipe, kept):
      assert part in shown
