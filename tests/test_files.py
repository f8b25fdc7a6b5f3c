"""Files that are written whole or not at all; their digests and seals."""

import os
import pathlib

import pytest

from cops_jax import files
from cops_jax.errors import InputError


def test_a_file_and_the_folders_above_it(tmp_path):
  path = tmp_path / "a" / "b.txt"
  for content in ("one", b"two"):
    files.write_file(path, content)
  assert path.read_text() == "two"
  assert list(path.parent.iterdir()) == [path]


def test_addresses_are_no_paths(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for path in (pathlib.Path("gs://bucket/run"), "ftp://host/run", "gs:///run"):
    with pytest.raises(InputError, match="expected gs://BUCKET/PATH"):
      files.write_file(path, "x")
  assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_reported(tmp_path):
  (tmp_path / "file").write_text("in the way")
  path = tmp_path / "file" / "a.txt"
  with pytest.raises(InputError, match="a.txt cannot be written: File exists"):
    files.write_file(path, "text")
  (tmp_path / "folder").mkdir()
  with pytest.raises(InputError, match="folder cannot be written: Is a direct"):
    files.write_file(tmp_path / "folder", "text")
  assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_failure_leaves_the_file_as_it_was(tmp_path):
  path = tmp_path / "a.txt"
  files.write_file(path, "before")
  with pytest.raises(KeyError):
    with files.whole_file(path) as partial:
      partial.write_text("half")
      raise KeyError("made")
  assert path.read_text() == "before"
  assert list(tmp_path.iterdir()) == [path]


def test_the_digest_of_a_file(tmp_path):
  path = tmp_path / "a"
  path.write_bytes(b"one")
  assert files.digest_file(path) == files.digest_file(b"one")
  path.write_bytes(b"two")
  assert files.digest_file(path) == files.digest_file(b"two")
  os.mkfifo(tmp_path / "pipe")
  for name in ("pipe", "absent"):
    assert files.digest_file(tmp_path / name) == "unreadable"
  assert files.file_state(tmp_path / "absent") == "unreadable"


def test_every_changed_byte_of_a_sealed_file_is_noticed():
  values = {"score": 0.25, "list": [1, None, "x"], "tree": {"a": True}}
  text = files.seal(values, indent=2).encode()
  assert files.unseal(text) == values
  same = 0
  for place in range(len(text)):
    for bit in (1, 2, 16):
      changed = bytearray(text)
      changed[place] ^= bit
      try:
        found = files.unseal(bytes(changed))
      except ValueError:
        continue
      # White space, or the name of the digest, which readers do not know.
      assert found == values or len(found) == len(values) + 1
      same += found == values
  assert same < 40


@pytest.mark.parametrize("text", ("[]", "1", "{", "[" * 100_000, b"\xff"))
def test_what_is_not_sealed_is_refused(text):
  with pytest.raises(ValueError):
    files.unseal(text)


def test_text_of_earlier_versions_has_no_digest():
  assert files.unseal('{"a": 1}') == {"a": 1}
