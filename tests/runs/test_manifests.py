"""Manifests of directories."""

import pytest

from cops_jax.files import seal
from cops_jax.runs import manifests


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "b").write_bytes(b"0123")
  (tmp_path / "empty").write_bytes(b"")
  manifests.write_manifest(tmp_path)
  assert manifests.find_damage(tmp_path) == []
  return tmp_path


def test_what_is_wrong_is_named(folder):
  path = folder / "a" / "b"
  path.write_bytes(b"0124")
  (damage,) = manifests.find_damage(folder)
  assert damage == (
    "a/b has the SHA-256"
    " 91b1e240ed103f291c16765cb201a9e4f2c23ff4057050b9fd78571f373ace3d"
    " instead of"
    " 1be2e452b46d7a0d9656bbb1f768e8248eba1b75baed65f5d99eafa948899a6a"
  )
  path.write_bytes(b"012")
  assert manifests.find_damage(folder) == ["a/b has 3 bytes instead of 4"]
  path.unlink()
  (damage,) = manifests.find_damage(folder)
  assert damage == "a/b cannot be read: No such file or directory"
  path.mkdir()
  (damage,) = manifests.find_damage(folder)
  assert damage == "a/b cannot be read: Is a directory"


@pytest.mark.parametrize(
  "content",
  ("{", "[" * 100_000, seal({}), seal({"files": 1}), seal({"files": {"a": 1}})),
)
def test_a_damaged_manifest_is_refused(folder, content):
  (folder / manifests.MANIFEST).write_text(content)
  (damage,) = manifests.find_damage(folder)
  assert damage.startswith("manifest.json is damaged: ")
