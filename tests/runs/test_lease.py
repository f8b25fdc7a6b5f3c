"""A lock in a bucket."""

import functools
import json
import os
import subprocess
import sys
import time

import pytest

from cops_jax import buckets, files
from cops_jax.errors import InputError
from cops_jax.runs import lease, lock

FACTS = {"process": os.getpid(), "host": "made", "since": "then"}
SOON = {"interval": 0.05, "lapse": 0.6, "look": 0.1}


@pytest.fixture
def address(bucket):
  return f"{bucket}/run/.training.lease"


@pytest.fixture
def make(address):
  """Leases, of which what ends their process is noted; all released."""
  made = []

  def make_lease(facts=FACTS, **options):
    ended = []
    one = lease.Lease(
      address, facts, lambda *end: ended.append(end), **{**SOON, **options}
    )
    made.append(one)
    return one, ended

  yield make_lease
  for one in made:
    one.release()


def test_one_at_a_time(make, address):
  first, ended = make()
  first.acquire()
  other, _ = make()
  with pytest.raises(InputError, match=f"process {os.getpid()} on host made"):
    other.acquire()
  time.sleep(0.3)
  first.release()
  assert not files.exists(address)
  other.acquire()
  assert not ended


def test_a_lapsed_lease_is_taken_over(make, address):
  """Its holder, cut off for a while, ends when it learns of that."""
  holder, ended = make()
  assert holder._create()  # Without the thread that renews it.
  other, ended_too = make()
  began = time.monotonic()
  other.acquire()
  assert time.monotonic() - began > 0.5
  holder._keep_renewing()
  ((message, code),) = ended
  assert code == 75 and "was taken over by process" in message
  holder.release()  # Leaves the other's alone.
  assert json.loads(buckets.read(address))["token"] == other._values["token"]
  assert not ended_too


def test_a_dead_process_of_this_machine_is_not_waited_for(make, address):
  gone = subprocess.Popen([sys.executable, "-c", ""])
  gone.wait()
  holder, _ = make({**FACTS, "process": gone.pid}, interval=100.0)
  holder.acquire()
  other, _ = make(lapse=100.0)
  began = time.monotonic()
  other.acquire()
  assert time.monotonic() - began < 60


@pytest.mark.parametrize("content", (b"", b"[]", b'{"process": "x"}'))
def test_a_file_of_another_kind_lapses_too(make, address, content):
  buckets.write(address, content)
  one, _ = make()
  one.acquire()


def test_an_outage_is_survived(server, make, address):
  one, ended = make()
  one.acquire()
  with server.failing(403):
    time.sleep(0.3)
  time.sleep(0.3)
  assert not ended
  assert json.loads(buckets.read(address))["renewed"] > 0


def test_a_work_directory_in_a_bucket(bucket, address, monkeypatch):
  workdir = f"{bucket}/run"
  soon = functools.partial(lease.Lease, **SOON)
  monkeypatch.setattr(lease, "Lease", soon)
  with lock.hold(workdir, "training"):
    with lock.hold(workdir, "evaluation"):
      pass
    expected = f"{workdir} is in use for training by process {os.getpid()}"
    with pytest.raises(InputError, match=expected):
      with lock.hold(workdir, "training"):
        pass
    assert files.exists(address)
  assert not files.exists(address)
