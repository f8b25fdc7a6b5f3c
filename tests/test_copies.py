"""Copies on this host of what is in a bucket."""

import pytest

from cops_jax import copies, files
from cops_jax.errors import InputError

CONTENT = {"a": b"1", "b/c": b"22" * 1000, "b/d.partial": b"", "e": b"5"}


@pytest.fixture
def address(bucket):
  for name, content in CONTENT.items():
    files.write_file(f"{bucket}/folder/{name}", content)
  return f"{bucket}/folder"


@pytest.fixture
def downloads(server):
  """How many files were read since this was asked last."""

  def count():
    number = sum("alt=media" in path for _, path in server.requests)
    server.requests.clear()
    return number

  return count


def read_copy(place):
  return {name: (place / name).read_bytes() for name in files.find_files(place)}


def test_a_folder_is_copied_once(address, downloads, monkeypatch):
  place = copies.fetch(address)
  assert place == copies.place_of(address) and read_copy(place) == CONTENT
  assert downloads() == len(CONTENT)
  files.write_file(f"{address}/a", b"2")
  files.delete(f"{address}/e")
  assert copies.fetch(address) == place
  assert read_copy(place) == {
    **{name: CONTENT[name] for name in ("b/c", "b/d.partial")},
    "a": b"2",
  }
  assert downloads() == 1


def test_a_file_is_copied(address, downloads):
  place = copies.fetch(f"{address}/b/c")
  assert place.read_bytes() == CONTENT["b/c"] and downloads() == 1
  copies.fetch(f"{address}/b/c")
  assert not downloads()


def test_some_of_a_folder(address):
  place = copies.fetch(address, lambda names: [min(names)])
  assert read_copy(place) == {"a": b"1"}


def test_an_interrupted_copy_goes_on(server, address, downloads):
  with server.failing(403, text="b%2Fc?alt=media"):
    with pytest.raises(InputError, match="cannot be copied.*What was copied"):
      copies.fetch(address)
  (place,) = copies.place_of(address).parent.iterdir()
  done = read_copy(place)
  assert "b/c" not in done and len(done) < len(CONTENT)
  downloads()
  copies.fetch(address)
  assert downloads() == len(CONTENT) - len(done)
  assert read_copy(place) == CONTENT


def test_a_changed_copy_is_replaced_and_a_right_one_kept(address, downloads):
  """Even where nothing says which files were found to be right."""
  place = copies.fetch(address)
  for record in (copies.home() / "records").glob("*.json"):
    record.unlink()
  (place / "b/c").write_bytes(b"33" * 1000)
  downloads()
  copies.fetch(address)
  assert read_copy(place) == CONTENT and downloads() == 1


def test_what_cannot_be_copied(address, monkeypatch):
  with pytest.raises(InputError, match="gs://made-bucket/none does not exist"):
    copies.fetch("gs://made-bucket/none")
  assert not copies.fetch("gs://made-bucket/none", must_exist=False).exists()
  usage = type("Usage", (), {"free": 1000})
  monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
  with pytest.raises(InputError, match="needs 2e-06 GB, .*has 1e-06 GB free"):
    copies.fetch(address)


def test_send_sends_some_files_last(server, bucket, tmp_path):
  for name in ("a", "z", "b"):
    files.write_file(tmp_path / name, name)
  sent = []
  server.fault = lambda method, path, body: sent.append(body)
  copies.send(tmp_path, f"{bucket}/sent", last=["a"])
  assert len(sent) == 3 and b'"sent/a"' in sent[-1]
  assert files.find_files(f"{bucket}/sent") == {"a": 1, "b": 1, "z": 1}
