"""The processes of a cluster end together."""

import collections
import queue
import random
import re
import shutil
import signal
import socket
import time

import pytest

from cops_jax.runs.checkpoints import find_damage, find_steps
from cops_jax.runs.metrics_log import read_metrics
from cops_jax.runtime.watch import Watch
from helpers.cluster import end_cluster, start_cluster
from helpers.images import write_folder
from helpers.scripts import run


class Member:
  """A process's part, which notes its end instead of bringing it about."""

  def __init__(self, process, token="secret", **overrides):
    self.ends = queue.Queue()
    options = {"interval": 0.1, "silence": 1.0, "grace": 0.1, "news": 0.1}
    options |= overrides
    self.watch = Watch(
      process, token, lambda *end: self.ends.put(end), **options
    )

  def end(self):
    return self.ends.get(timeout=20)

  def die(self):
    """As the system does it: connections are closed, and nothing is said."""
    writers, self.watch._writers = self.watch._writers, []
    for writer in writers:
      self.watch._loop.call_soon_threadsafe(writer.transport.abort)


@pytest.fixture
def members():
  """Three processes that are connected."""
  first = Member(0)
  port = first.watch.serve(3)
  others = [Member(1), Member(2, interval=0.2)]
  for other in others:
    other.watch.join("127.0.0.1", port)
  deadline = time.monotonic() + 20
  while len(first.watch._writers) < 2:
    assert time.monotonic() < deadline
    time.sleep(0.01)
  return first, *others


def test_a_death_is_told_to_all(members):
  first, second, third = members
  second.watch.note(step=12)
  second.watch.note(saved=10)
  time.sleep(0.5)  # Until that was said.
  second.die()
  for member in (first, third):
    sentence, code = member.end()
    assert code == 75
    assert sentence.startswith("process 1 on ")
    assert "(after step 12, with checkpoint 10 saved) ended without" in sentence
    assert "the same command goes on" in sentence


def test_the_death_of_the_first_is_noticed(members):
  first, *others = members
  first.die()
  for member in others:
    sentence, code = member.end()
    assert sentence.startswith("process 0 on ") and code == 75


def test_a_silent_process_counts_as_lost():
  first = Member(0)
  silent = Member(1, interval=100.0, silence=100.0)
  silent.watch.join("127.0.0.1", first.watch.serve(2))
  sentence, code = first.end()
  assert "process 1" in sentence and "was silent for 1 s" in sentence
  assert code == 75


def test_a_process_that_does_not_join_is_named():
  first, second = Member(0), Member(1)
  second.watch.join("127.0.0.1", first.watch.serve(4))
  for member in (first, second):
    sentence, code = member.end()
    assert sentence.startswith("not all processes joined within 1 s: 2, 3 of 4")
    assert code == 75


@pytest.mark.parametrize("failing", (0, 1))
def test_an_error_is_told_to_all(members, failing):
  """Who has it ends with its own words."""
  members[failing].watch.note(doing="evaluating visa")
  members[failing].watch.fail("all is lost", 3)
  for number, member in enumerate(members):
    sentence, code = member.end()
    assert code == 3
    if number == failing:
      assert sentence == ""
    else:
      assert f"process {failing} on " in sentence
      assert sentence.endswith("ended (evaluating visa): all is lost")


def test_an_orderly_end_is_missed_by_none(members):
  first, second, third = members
  for member in (second, first):
    member.watch.finish()
  time.sleep(0.3)
  second.die()
  time.sleep(1.5)
  assert first.ends.empty() and third.ends.empty()
  # With all done, who is left does not wait for the others.
  third.watch.finish()
  time.sleep(0.3)
  third.die()
  assert first.end() == ("", 0)


def test_strangers_are_not_heard():
  first = Member(0)
  port = first.watch.serve(1)
  for line in (b'{"token": "guess", "process": 1, "host": "a"}\n', b"GET /\n"):
    with socket.create_connection(("127.0.0.1", port)) as stranger:
      stranger.sendall(line)
      assert stranger.recv(100) == b""
  stranger = Member(1, token="guess", silence=100.0)
  stranger.watch.join("127.0.0.1", port)
  stranger.watch.fail("nothing", 1)
  time.sleep(0.5)
  assert first.ends.empty()


@pytest.mark.parametrize("killed", (0, 1))
def test_the_others_end_with_a_process_that_is_killed(
  arguments, tmp_path, killed
):
  """In training; what is saved is good, and is what the sentence says."""
  images = write_folder(tmp_path / "nuts", 29)
  workdir = tmp_path / "run"
  cluster = start_cluster(
    *(2, 1, "train.py", *arguments, f"--workdir={workdir}"),
    *(f"--config.train.dataset={images}", "--config.train.batch_size=2"),
    *("--config.train.num_epochs=1000", "--config.train.log_every_steps=50"),
    "--config.train.checkpoint_every_steps=20",
  )
  while not (workdir / "checkpoints" / "20").exists():
    assert all(process.poll() is None for process in cluster)
    time.sleep(0.05)
  cluster[killed].kill()
  began = time.monotonic()
  codes, logs = end_cluster(cluster)
  assert time.monotonic() - began < 30
  assert codes[killed] == -signal.SIGKILL and codes[1 - killed] == 75, logs
  log = logs[1 - killed]
  assert f"process {killed} on " in log and "ended without a word" in log
  assert "the same command goes on from what is saved" in log
  assert "Traceback" not in log and "core dumped" not in log
  assert not find_damage(workdir)[find_steps(workdir)[-1]]


@pytest.mark.soak
@pytest.mark.parametrize("script", ("train.py", "eval.py"))
def test_any_process_killed_at_any_time(arguments, tmp_path, script):
  """From when they have met; then the same command does what is left."""
  rng = random.Random(time.time_ns())
  nuts, bolts = (
    write_folder(tmp_path / name, 29) for name in ("nuts", "bolts")
  )
  features, workdir = tmp_path / "features", tmp_path / "run"
  flags = (
    f"--workdir={workdir}",
    f"--config.features_dir={features}",
    f"--config.evaluation.datasets=('{nuts}','{bolts}')",
    "--config.feature_cache.dtype=float32",
  )
  training = (
    *(*arguments, *flags, f"--config.train.dataset={nuts}"),
    *("--config.train.batch_size=2", "--config.train.num_epochs=10"),
    "--config.train.evaluate_every_steps=50",
  )
  if script == "eval.py":
    code, _, err = run("train.py", *training)
    assert code == 0, err
  command = (script, *(training if script == "train.py" else flags))
  start = tmp_path / "start"
  if workdir.exists():
    shutil.copytree(workdir, start)

  def begin_again():
    for folder in (workdir, features):
      shutil.rmtree(folder, ignore_errors=True)
    if start.exists():
      shutil.copytree(start, workdir)

  def outcome():
    paths = [workdir / name for name in ("scores.csv", "results.csv")]
    written = [path.read_bytes() for path in paths if path.exists()]
    return read_metrics(workdir), written

  begin_again()
  began = time.monotonic()
  codes, logs = end_cluster(start_cluster(2, 1, *command))
  assert codes == [0, 0], logs
  duration, whole = time.monotonic() - began, outcome()
  begin_again()
  num_kills, phases = 0, collections.Counter()
  while num_kills < 20:
    cluster = start_cluster(2, 1, *command)
    time.sleep(rng.uniform(0.4, 1) * duration)
    killed = rng.choice((0, 1))
    if any(process.poll() is not None for process in cluster):
      assert end_cluster(cluster)[0] == [0, 0]
      assert outcome() == whole
      begin_again()
      continue
    cluster[killed].kill()
    began = time.monotonic()
    codes, logs = end_cluster(cluster)
    seconds = time.monotonic() - began
    log = logs[1 - killed]
    assert seconds < 120 and codes[1 - killed] in (0, 75), logs
    if codes[1 - killed]:
      assert "ended without a word" in log and "Traceback" not in log, log
    num_kills += 1
    if script == "eval.py" and num_kills % 2:  # It keeps what it has done.
      begin_again()
    found = re.search(r"process \d on [\w.-]+( \((.*?)\))?", log)
    phases[re.sub(r"\d+", "N", (found and found[2]) or "else")] += 1
    print(f"killed {killed}, the other ended after {seconds:.1f} s", phases)
  codes, logs = end_cluster(start_cluster(2, 1, *command))
  assert codes == [0, 0], logs
  assert outcome() == whole
