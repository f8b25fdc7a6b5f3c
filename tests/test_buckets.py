"""Files in object storage."""

import base64
import concurrent.futures
import time

import pytest

from cops_jax import buckets, files
from cops_jax.errors import InputError, WriteError


def test_files(bucket, tmp_path):
  address = f"{bucket}/a folder/ä #1?.txt"
  assert not files.exists(address) and files.find_files(bucket) == {}
  for content in (b"one", "tv\xe5"):
    files.write_file(address, content)
  assert files.read_file(address) == "två".encode()
  for content in (b"", b"\r", b"a\n", b"--==0==--\n\r\n", bytes(range(256))):
    files.write_file(f"{bucket}/bytes", content)
    assert files.read_file(f"{bucket}/bytes") == content
  files.delete(f"{bucket}/bytes")
  assert files.exists(address) and files.is_file(address)
  assert files.exists(f"{bucket}/a folder")
  assert not files.is_file(f"{bucket}/a folder")
  with files.whole_file(f"{bucket}/a folder/b/c") as partial:
    partial.write_bytes(b"12345")
  assert files.find_files(f"{bucket}/a folder") == {"b/c": 5, "ä #1?.txt": 4}
  assert files.size_of(f"{bucket}/a folder/b/c") == 5
  buckets.rename(f"{bucket}/a folder", f"{bucket}/new")
  assert files.find_files(bucket) == {"new/b/c": 5, "new/ä #1?.txt": 4}
  for _ in range(2):
    files.delete(f"{bucket}/new")
  assert files.find_files(bucket) == {}


def test_what_fails_is_not_written(bucket):
  with pytest.raises(KeyError):
    with files.whole_file(f"{bucket}/a") as partial:
      partial.write_text("half")
      raise KeyError
  assert files.find_files(bucket) == {}


def test_large_files_and_their_checksums(server, bucket, tmp_path):
  content = bytes(range(256)) * 100_000
  files.write_file(f"{bucket}/large", content)
  file = buckets.find_files(f"{bucket}/large")[""]
  counts, path = [], tmp_path / "large"
  buckets.download(f"{bucket}/large", path, file, counts.append)
  assert path.read_bytes() == content and sum(counts) == len(content)
  assert buckets.compute_checksum(path) == file.checksum
  other = base64.b64encode(b"0000").decode()
  with pytest.raises(OSError, match="was received, and the server has"):
    buckets.download(f"{bucket}/large", path, file._replace(checksum=other))


def test_one_of_many_makes_a_file(bucket):
  def make(number):
    try:
      buckets.write(f"{bucket}/lock", b"%d" % number, must_be_new=True)
      return number
    except FileExistsError:
      return None

  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    (maker,) = [one for one in pool.map(make, range(8)) if one is not None]
  assert buckets.read(f"{bucket}/lock") == b"%d" % maker


def test_a_short_outage_is_waited_for(server, bucket):
  files.write_file(f"{bucket}/a", "text")
  began, left = time.monotonic(), [3]

  def fault(method, path, body):
    left[0] -= 1
    return 503 if left[0] >= 0 else None

  server.fault = fault
  assert files.read_file(f"{bucket}/a") == b"text"
  assert left[0] < 0 and time.monotonic() - began > 1


def test_what_arrives_changed_is_an_error(server, bucket):
  server.change = lambda content: content[:-1]
  with pytest.raises(WriteError, match="MD5 checksum failed"):
    files.write_file(f"{bucket}/a", "text")


@pytest.mark.parametrize(
  "status, reason", ((401, "there are no credentials"), (403, "may not do"))
)
def test_what_is_not_allowed_is_one_sentence(
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


def test_what_is_not_there(bucket):
  with pytest.raises(FileNotFoundError):
    files.read_file(f"{bucket}/a")
  for function in (files.read_file, files.is_file, files.find_files):
    try:
      assert not function("gs://no-such-bucket/a")
    except FileNotFoundError:
      pass
  with pytest.raises(WriteError, match="the bucket does not exist"):
    files.write_file("gs://no-such-bucket/a", "x")


def test_a_missing_package_is_named(monkeypatch):
  import sys

  monkeypatch.setitem(sys.modules, "s3fs", None)
  with pytest.raises(InputError, match=r"s3:// addresses needs? .*\[s3\]"):
    files.read_file("s3://bucket/a")
