"""Pretrained prompts: located on the hub and in folders, refused if wrong."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cops_jax import files
from cops_jax.detector import AnomalyDetector
from cops_jax.errors import InputError
from cops_jax.weights import pretrained
from helpers import hub
from helpers.runs import flip
from helpers.scripts import ROOT, environment


@pytest.fixture
def folder(published, tmp_path):
  return shutil.copytree(published, tmp_path / "folder")


def test_folders_are_found_and_other_paths_unchanged(
  published, trained, folder
):
  assert pretrained.find(published) == published / "prompts.safetensors"
  assert pretrained.find_start(published) == published / "prompts.safetensors"
  for path in (trained[0], folder / "prompts.safetensors", "gs://bucket/run"):
    assert pretrained.find_start(path) == path


def test_folders_without_pretrained_prompts_are_refused(folder):
  """A file, prompts without a record, and a folder without prompts."""
  prompts = folder / "prompts.safetensors"
  with pytest.raises(InputError, match="safetensors has no pretrained p"):
    pretrained.find(prompts)
  save_file(load_file(prompts), prompts)
  for _ in range(2):
    with pytest.raises(InputError, match="folder has no pretrained prompts: e"):
      pretrained.find(folder)
    prompts.unlink(missing_ok=True)


def test_damaged_prompts_are_refused(folder):
  flip(folder / "prompts.safetensors")
  with pytest.raises(InputError, match="prompts.safetensors is damaged: its"):
    AnomalyDetector.from_pretrained(folder)
  (folder / "prompts.safetensors").write_bytes(b"")
  with pytest.raises(InputError, match="prompts.safetensors is neither"):
    pretrained.find(folder)


def test_unknown_names_are_refused(
  published, clip_folder, tmp_path, monkeypatch
):
  for name, folder in (("some/prompts", published), ("some/clip", clip_folder)):
    hub.fill_cache(tmp_path, name, {"main": folder}, monkeypatch)
  for name in ("nowhere", "/no/where", "a/b/c", "../a/b", "owner/", "a/b@", ""):
    with pytest.raises(InputError, match="nor OWNER/NAME or OWNER/NAME@REVIS"):
      pretrained.find(name)
  with pytest.raises(InputError, match=r"hub \(did you mean cops-visa or"):
    pretrained.find("cops-vis")
  for name in ("some/others", "some/prompts@v3"):
    with pytest.raises(InputError, match=f"'{name}' is .* downloaded .* cache"):
      pretrained.find(name)
  with pytest.raises(InputError, match="^some/clip has no .* a prompts.safete"):
    pretrained.find("some/clip")
  # A local folder with that name comes first.
  monkeypatch.chdir(tmp_path)
  shutil.copytree(published, tmp_path / "some" / "prompts")
  found = str(pretrained.find("some/prompts"))
  assert found == "some/prompts/prompts.safetensors"


DOWNLOAD = """
import json, os, pathlib, socket, sys
from helpers import hub

home, *folders = map(pathlib.Path, sys.argv[1:])
revisions = dict(zip(("main", "v1"), folders))
found = []
with hub.serve({"some/prompts": revisions}) as server:
  os.environ |= dict(
    HF_HOME=str(home), HF_ENDPOINT=server.address, HF_HUB_OFFLINE="0"
  )
  from cops_jax.errors import InputError
  from cops_jax.weights import pretrained

  def find():
    found.append([])
    for name in ("prompts", "prompts@v1", "prompts@v2", "no"):
      try:
        found[-1].append(str(pretrained.find(f"some/{name}")))
      except InputError as error:
        found[-1].append(str(error))

  find()
  asked = list(server.asked)
  find()
  downloads = [
    sum("/resolve/" in path for path in paths)
    for paths in (asked, server.asked)
  ]
find()
with socket.create_server(("127.0.0.1", 0)) as silent:
  from cops_jax.weights import locate
  from huggingface_hub import constants

  locate._TIMEOUTS = (10, 0.2)
  constants.ENDPOINT = f"http://127.0.0.1:{silent.getsockname()[1]}"
  find()
print(json.dumps([found, downloads]))
"""


def test_the_hubs_own_client_downloads_once(published, folder, tmp_path):
  """Later calls read the cache, also without the server."""
  (folder / "pytorch_model.bin").write_bytes(b"not requested")
  result = subprocess.run(
    [sys.executable, "-c", DOWNLOAD, tmp_path / "home", published, folder],
    env={**environment(), "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr
  found, (downloads, later_downloads) = json.loads(result.stdout)
  for path, source in zip(found[0], (published, folder), strict=False):
    kept = pathlib.Path(path).parent
    assert kept.name == hub.commit_of(source)
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == {
      name: (source / name).read_bytes() for name in pretrained.FILES
    }
  assert downloads == later_downloads > 0
  for names, reasons in zip(
    found,
    (
      *[("RevisionNotFoundError", "RepositoryNotFoundError")] * 2,
      ("ConnectionError", "ConnectionError"),
      ("ReadTimeout", "ReadTimeout"),
    ),
    strict=True,
  ):
    assert names[:2] == found[0][:2]
    for message, reason in zip(names[2:], reasons, strict=True):
      assert f"from the Hugging Face hub ({reason}), and the hub's" in message


def test_prompts_are_fetched_from_an_address(published, bucket):
  with pytest.raises(InputError, match="/prompts does not exist"):
    pretrained.find(f"{bucket}/prompts")
  for name in os.listdir(published):
    content = (published / name).read_bytes()
    files.write_file(f"{bucket}/prompts/{name}", content)
  found = pretrained.find(f"{bucket}/prompts")
  assert sorted(os.listdir(found.parent)) == sorted(os.listdir(published))


def test_another_clip_is_refused_unless_allowed(folder, clip_folder, tmp_path):
  other = shutil.copytree(clip_folder, tmp_path / "clip")
  path = other / "model.safetensors"
  tensors = load_file(path)
  save_file({**tensors, "logit_scale": np.array(3, np.float16)}, path)
  with pytest.raises(InputError, match="was trained on weights with the"):
    AnomalyDetector.from_pretrained(folder, backbone=other)
  changed = AnomalyDetector.from_pretrained(
    folder, backbone=other, allow_other_backbone=True
  )
  moved = shutil.copytree(clip_folder, tmp_path / "moved")
  same = AnomalyDetector.from_pretrained(folder, backbone=moved)
  assert same.backbone.sha256 != changed.backbone.sha256
