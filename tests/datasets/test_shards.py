"""Records of shards in a bucket, of which some are on this host's disk."""

import os
import pickle
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from cops_jax import buckets
from cops_jax.datasets.shards import Shard, Shards
from cops_jax.errors import InputError
from cops_jax.files import digest_file
from helpers.bucket import watch_size
from helpers.runs import flip

LENGTHS = (3, 1, 4, 1, 5, 2)
RECORDS = [os.urandom(20_000) for _ in range(sum(LENGTHS))]


@pytest.fixture
def described(bucket, tmp_path):
  records, shards = iter(RECORDS), []
  for number, length in enumerate(LENGTHS):
    path, address = tmp_path / f"{number}", f"{bucket}/data/{number}"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for _ in range(length):
      writer.write(next(records))
    writer.close()
    buckets.upload(path, address)
    (file,) = buckets.find_files(address).values()
    shards.append(Shard(address, length, file, digest_file(path)))
  return shards


@pytest.fixture
def limit(described):
  """Two shards fit, and most are smaller."""
  sizes = sorted(shard.file.size for shard in described)
  assert sizes[0] < sizes[-1]
  return sum(sizes[-2:])


def names(shards):
  # It may not be there yet.
  return {path.name for path in shards.folder.glob("*") if path.is_file()}


def wait_until(condition):
  deadline = time.monotonic() + 20
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.01)


def test_records_are_those_that_were_written(described, limit, server):
  shards = Shards(described, limit)
  assert len(shards) == len(RECORDS)
  with watch_size(shards.folder) as sizes:
    assert list(shards) == RECORDS
    server.requests.clear()
    assert shards[-1 + len(RECORDS)] == RECORDS[-1] and not server.requests
  assert 0 < max(sizes) <= limit
  # The last two or three, each by its content.
  assert described[-1].copy_name in names(shards)
  assert described[0].copy_name not in names(shards)
  with pytest.raises(IndexError):
    shards[len(RECORDS)]


def test_many_readers_need_more_than_fits(described, limit):
  copies = [
    pickle.loads(pickle.dumps(Shards(described, limit))) for _ in range(2)
  ]
  places = random.Random(0).choices(range(len(RECORDS)), k=60)
  with watch_size(copies[0].folder) as sizes, ThreadPoolExecutor(8) as pool:
    found = pool.map(lambda place: copies[place % 2][place], places)
    assert list(found) == [RECORDS[place] for place in places]
  assert max(sizes) <= limit
  assert not [name for name in names(copies[0]) if name.endswith("partial")]


def test_a_copy_that_is_deleted_before_it_is_opened(
  described, limit, monkeypatch
):
  shards = Shards(described, limit)
  assert shards[0] == RECORDS[0]

  def delete(path):
    if not path.suffix:
      path.unlink(missing_ok=True)

  monkeypatch.setattr("cops_jax.datasets.shards._note_use", delete)
  assert shards[0] == RECORDS[0]


def test_what_was_used_last_stays(described, limit):
  shards = Shards(described, limit)
  for place in (0, 3, 0, 4):  # Of the shards 0, 1, 0 and 2.
    assert shards[place] == RECORDS[place]
  assert names(shards) >= {described[0].copy_name, described[2].copy_name}


def test_expected_shards_are_copied_before(described, limit, server):
  shards = Shards(described, limit + described[4].file.size)
  shards.expect((2, 3))
  wait_until(lambda: len(names(shards)) == 2)
  wait_until(lambda: described[3].copy_name in names(shards))
  wait_until(lambda: described[2].copy_name in names(shards))
  server.requests.clear()
  assert shards[5] == RECORDS[5] and shards[8] == RECORDS[8]
  shards.expect((2, 3))
  assert not server.requests
  # Not more than fits, with one shard besides.
  shards.expect((4, 5, 0, 1))
  wait_until(lambda: described[4].copy_name in names(shards))
  assert shards[5] == RECORDS[5] and not [
    path for _, path in server.requests if "data%2F1" in path
  ]


def test_what_killed_processes_left_makes_room(described, limit):
  shards = Shards(described, limit)
  shards.folder.mkdir(parents=True)
  left = shards.folder / f"{described[1].copy_name}.partial"
  left.write_bytes(b"1")
  other = shards.folder / f"of-another-data-set-{limit}"
  other.write_bytes(b"1")
  assert shards[0] == RECORDS[0]
  assert names(shards) == {described[0].copy_name}


def test_what_cannot_be_read(described, limit, server):
  shards = Shards(described, limit)
  with server.failing(403, text="data%2F0?alt=media"):
    shards.expect((0,))  # Nobody needs it yet.
    with pytest.raises(InputError, match="data/0 cannot be copied to .* may"):
      shards[0]
  assert shards[0] == RECORDS[0] and len(names(shards)) == 1
  flip(described[1].address)  # As large as before, and the server knows it so.
  (file,) = buckets.find_files(described[1].address).values()
  changed = Shard(described[1].address, 1, file, described[1].sha256)
  with pytest.raises(InputError, match="data/1 has been changed since it was"):
    Shards([changed], limit)[0]
  # A file that is shorter than what was listed.
  with pytest.raises(InputError, match="data/1 cannot be copied .*received"):
    shards[3]
  assert names(shards) == {described[0].copy_name}
  flip(shards.folder / described[0].copy_name)
  with pytest.raises(RuntimeError):
    shards[1]


def test_an_outage_is_waited_for(described, limit, server):
  shards, began = Shards(described, limit), time.monotonic()
  server.fault = lambda *_: 503 if time.monotonic() - began < 2 else None
  assert shards[0] == RECORDS[0] and time.monotonic() - began > 2


def test_a_limit_that_is_too_small_is_refused(described, limit):
  shards = Shards(described, limit)
  shards.require_room(2, "reading")
  with pytest.raises(
    InputError, match=r"copy_gigabytes is .* reading needs 3 of the 6 shards in"
  ):
    shards.require_room(3, "reading")
