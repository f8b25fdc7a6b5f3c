"""Writing anomaly maps to files."""

import errno
import os

import numpy as np
import pytest

from cops_jax.errors import InputError
from cops_jax.images.maps import MapWriter


def write(folder, *names):
  with MapWriter(folder) as maps:
    for index, name in enumerate(names):
      anomaly_map = np.full((3, 4), index / 10, np.float32)
      maps.write(name.partition("/")[0], name, anomaly_map)


def test_written_maps_can_be_loaded(tmp_path, monkeypatch):
  """Categories alternate, and one has a name that no file can have."""
  write(tmp_path / "maps", "a/0.png", "b: c?/x.png", "a/1.png")
  names = sorted(path.name for path in (tmp_path / "maps").iterdir())
  assert names == ["a.npz", "b%3A c%3F.npz"]
  with np.load(tmp_path / "maps" / "a.npz") as maps:
    assert maps.files == ["a/0.png", "a/1.png"]
    np.testing.assert_array_equal(maps["a/1.png"], np.full((3, 4), 0.2, "f2"))
  monkeypatch.chdir(tmp_path)
  write(None, "a/0.png")
  assert os.listdir() == ["maps"]


def test_a_failure_keeps_the_earlier_files(tmp_path, monkeypatch):
  write(tmp_path, "a/0.png")
  with pytest.raises(ZeroDivisionError):
    with MapWriter(tmp_path) as maps:
      maps.write("a", "a/1.png", np.zeros((2, 2), np.float32))
      raise ZeroDivisionError

  def fail(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(np.lib.format, "write_array", fail)
  with pytest.raises(InputError, match="No space left on device.*save_maps"):
    write(tmp_path, "a/2.png")
  assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
  with np.load(tmp_path / "a.npz") as maps:
    assert maps.files == ["a/0.png"]
