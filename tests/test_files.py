"""Atomic and sealed files on disks and in buckets."""

import concurrent.futures
import json
import os
import pathlib
import sys

import pytest

from cops_jax import files, paths
from cops_jax.errors import InputError, WriteError


@pytest.fixture(params=("disk", "bucket"))
def folder(request, tmp_path):
  if request.param == "disk":
    return tmp_path / "files"
  return paths.to_path(request.getfixturevalue("bucket"))


def test_files_are_written_and_read_back(folder):
  path = folder / "a folder" / "ä #1?.txt"
  assert not files.exists(path) and files.find_files(folder) == {}
  for content in (b"", b"\r", b"a\n", b"--==0==--\n\r\n", bytes(range(256))):
    files.write_file(path, content)
    assert files.read_file(path) == content
  files.write_file(path, "tv\xe5")
  assert files.read_file(path) == "två".encode()
  assert files.is_file(path) and files.exists(folder / "a folder")
  assert not files.is_file(folder / "a folder")
  with files.whole_file(folder / "a folder/b/c") as partial:
    partial.write_bytes(b"12345")
  found = {"a folder/b/c": 5, "a folder/ä #1?.txt": 4}
  assert files.find_files(folder) == found
  assert files.size_of(folder / "a folder/b/c") == 5
  files.rename(folder / "a folder", folder / "new")
  assert files.find_files(folder) == {"new/b/c": 5, "new/ä #1?.txt": 4}
  for name in ("new/b/c", "new", "new"):
    files.delete(folder / name)
  assert files.find_files(folder) == {}


def test_a_failed_write_keeps_the_old_file(folder):
  files.write_file(folder / "a.txt", "before")
  with pytest.raises(KeyError):
    with files.whole_file(folder / "a.txt") as partial:
      partial.write_text("half")
      raise KeyError("made")
  assert files.read_file(folder / "a.txt") == b"before"
  assert files.find_files(folder) == {"a.txt": 6}


def test_only_one_of_several_writers_creates_a_file(folder):
  def create(number):
    try:
      files.create_file(folder / "lock", b"%d" % number)
      return number
    except FileExistsError:
      return None

  files.write_file(folder / "other", "")
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    (winner,) = [one for one in pool.map(create, range(8)) if one is not None]
  assert files.read_file(folder / "lock") == b"%d" % winner


def test_paths_expand_the_home_folder(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  files.write_file("~/a/b", "text")
  assert files.read_file("~/a/b") == (tmp_path / "a/b").read_bytes()
  assert files.is_file("~/a/b") and files.find_files("~/a") == {"b": 4}
  files.delete("~/a")
  assert not files.exists("~/a")
  home = str(tmp_path)
  for text, expected in (
    ("--out=~/a", f"--out={home}/a"),
    ("~", home),
    (
      "--datasets=folder:~/a,meta_json:~/b",
      f"--datasets=folder:{home}/a,meta_",
    ),
    ("--config.evaluation.datasets=('folder:~/a',)", f"('folder:{home}/a',)"),
  ):
    assert expected in paths.expand(text)
  for text in ("a~", "gs://b/~/c", "~$a.docx", "--out=a/~/b", "HEAD~1"):
    assert paths.expand(text) == text


def test_an_unwritable_path_is_reported(tmp_path):
  (tmp_path / "file").write_text("in the way")
  (tmp_path / "folder").mkdir()
  for name, reason in (
    ("file/a.txt", "File exists"),
    ("folder", "Is a direct"),
  ):
    with pytest.raises(WriteError, match=f"{name} cannot be written: {reason}"):
      files.write_file(tmp_path / name, "text")
  assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize(
  "status, reason",
  (
    (401, "there are no valid credentials"),
    (403, "account lacks the permission"),
  ),
)
def test_an_error_of_a_bucket_is_reported(
  server, bucket, status, reason, caplog
):
  looks = (files.read_file, files.exists, files.is_file, files.find_files)
  files.write_file(f"{bucket}/a", "text")
  with server.failing(status):
    with pytest.raises(WriteError, match=f"/b cannot be written: .*{reason}"):
      files.write_file(f"{bucket}/b", "x")
    for look in looks:
      with pytest.raises(OSError, match=reason):
        look(f"{bucket}/a")
  assert not caplog.records


def test_a_missing_bucket_is_reported(server):
  with pytest.raises(FileNotFoundError):
    files.read_file("gs://no-such-bucket/a")
  with pytest.raises(WriteError, match="the bucket does not exist"):
    files.write_file("gs://no-such-bucket/a", "x")


def test_a_short_outage_is_retried_and_a_changed_upload_fails(server, bucket):
  files.write_file(f"{bucket}/a", "text")
  num_failures = [1]

  def fault(method, path, body):
    num_failures[0] -= 1
    return 503 if num_failures[0] >= 0 else None

  server.fault = fault
  assert files.read_file(f"{bucket}/a") == b"text" and num_failures[0] < 0
  server.change = lambda content: content[:-1]
  with pytest.raises(WriteError, match="MD5 checksum failed"):
    files.write_file(f"{bucket}/a", "text")


def test_unsupported_addresses_are_refused(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for path in ("ftp://host/run", "s3://bucket/run", pathlib.Path("gs://b/run")):
    with pytest.raises(InputError, match="expected gs://BUCKET/PATH"):
      files.write_file(path, "x")
  with pytest.raises(
    InputError, match="data_dir is gs://b/x, .*gcloud storage"
  ):
    paths.require_local("gs://b/x", "data_dir")
  paths._prepare_gcsfs.cache_clear()
  monkeypatch.setitem(sys.modules, "gcsfs", None)
  with pytest.raises(InputError, match=r"a gs:// address needs .*\[gcs\]"):
    files.read_file("gs://bucket/a")
  assert not list(tmp_path.iterdir())


def test_a_bucket_is_copied_once_and_after_changes(server, bucket):
  content = {"a": b"1", "b/c": b"22" * 1000, "e": bytes(6_000_000)}
  for name, value in content.items():
    files.write_file(f"{bucket}/folder/{name}", value)

  def read_copy(*arguments):
    server.requests.clear()
    place = files.fetch(*arguments)
    num_downloads = sum("alt=media" in path for _, path in server.requests)
    names = files.find_files(place)
    return {name: (place / name).read_bytes() for name in names}, num_downloads

  assert read_copy(f"{bucket}/folder") == (content, 3)
  assert read_copy(f"{bucket}/folder") == (content, 0)
  files.write_file(f"{bucket}/folder/a", b"2")
  files.delete(f"{bucket}/folder/e")
  del content["e"]
  content["a"] = b"2"
  # The remains of an interrupted copy do not matter.
  with server.failing(403, text="b%2Fc"):
    with pytest.raises(InputError, match="cannot be copied to this host: this"):
      files.fetch(f"{bucket}/folder")
  assert read_copy(f"{bucket}/folder") == (content, 2)
  some = read_copy(f"{bucket}/folder", lambda names: [min(names)])
  assert some == ({"a": b"2"}, 1)
  assert files.fetch(f"{bucket}/folder/b/c").read_bytes() == content["b/c"]
  with pytest.raises(InputError, match="gs://made-bucket/none does not exist"):
    files.fetch(f"{bucket}/none")


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path):
  path = tmp_path / "a"
  for content in (b"one", b"two"):
    path.write_bytes(content)
    assert files.digest_file(path) == files.digest_file(content)
  os.mkfifo(tmp_path / "pipe")
  for name in ("pipe", "absent"):
    assert files.digest_file(tmp_path / name) == "unreadable"
  assert files.file_state(tmp_path / "absent") == "unreadable"


def test_every_changed_bit_of_a_sealed_file_is_detected():
  values = {"score": 0.25, "list": [1, None, "x"], "tree": {"a": True}}
  text = files.seal(values, indent=2).encode()
  assert files.unseal(text) == values
  for place in range(8 * len(text)):
    changed = bytearray(text)
    changed[place // 8] ^= 1 << place % 8
    with pytest.raises(ValueError):
      files.unseal(bytes(changed))


def test_json_is_utf_8():
  values = {"ä": os.fsdecode(b"\xe9")}
  assert files.to_json(values) == r'{"ä": "\udce9"}'
  assert json.loads(files.to_json(values)) == values
  assert files.unseal(files.seal(values).encode()) == values


@pytest.mark.parametrize("text", ("[]", "1", "{", "[" * 100_000, b"\xff", "{}"))
def test_unsealed_text_is_refused(text):
  with pytest.raises(ValueError):
    files.unseal(text)
