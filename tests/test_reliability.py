"""Soak tests: random kills, flipped bits, bad input and crowds on the page.

`make soak` runs them. Each prints a line of numbers for docs/reliability.md.
"""

import collections
import concurrent.futures
import contextlib
import json
import os
import random
import resource
import shutil
import socket
import time

import pytest

from cops_jax import datasets, export, thresholds
from cops_jax.errors import InputError
from cops_jax.files import unseal
from cops_jax.reporting import tables
from cops_jax.runs import metrics_log
from cops_jax.runs.checkpoints import Checkpoints, find_damage
from cops_jax.runs.record import read_record
from cops_jax.weights.prompts import hash_prompts, load_prompts
from helpers import demo_pages, original_layouts
from helpers.demo_pages import ask, post, serve
from helpers.images import encode, make_image, write_folder
from helpers.scripts import ROOT, Program, run

pytestmark = pytest.mark.soak

detector = demo_pages.detector

COPS = ("-m", "cops_jax")
PREPARED = ("btad", "kvasir", "visa")


def say(name, numbers):
  print(f"\n{name}: {json.dumps(numbers)}", flush=True)


def prepared(out):
  return [
    datasets.load(name, "test", f"{out}/data").fingerprint()
    for name in PREPARED
  ]


def prompts_of(out):
  assert not any(find_damage(out / "run").values())
  with Checkpoints(out / "run") as saved:
    step, params = saved.restore_params()
  return step, hash_prompts(params), metrics_log.read_metrics(out / "run")


def evaluated(out):
  workdir = out / "run"
  files = (workdir / "scores.csv", *sorted((workdir / "maps").rglob("*.*")))
  scores = {str(path.relative_to(workdir)): path.read_bytes() for path in files}
  return tables.means_of(tables.read_results(workdir)), scores


def calibrated(out):
  return thresholds.read_thresholds(out / "run")


def exported(out):
  metadata = export.load(out / "model.cops").metadata
  return {key: value for key, value in metadata.items() if "sha256" in key}


@pytest.mark.parametrize(
  "outcome, command",
  (
    (
      prepared,
      (
        *(*COPS, "datasets", "prepare", *PREPARED),
        *("--data_dir={out}/data", "--manual_dir={tmp}/manual"),
      ),
    ),
    (
      prompts_of,
      (
        *("train.py", "--workdir={out}/run", "--config.train.batch_size=4"),
        "--config.train.dataset={images}",
        "--config.feature_cache.dtype=float32",
        "--config.features_dir={out}/features",
      ),
    ),
    (
      evaluated,
      (
        *("eval.py", "--workdir={out}/run", "--datasets={images}"),
        *("--save_maps", "--config.evaluation.batch_size=2"),
      ),
    ),
    (
      calibrated,
      (*COPS, "calibrate", "--workdir={out}/run", "--data={images}"),
    ),
    (
      exported,
      (*COPS, "export", "--workdir={out}/run", "--out={out}/model.cops"),
    ),
  ),
)
def test_a_command_killed_at_random_ends_like_an_uninterrupted_one(
  outcome, command, trained, arguments, tmp_path
):
  """Each command is killed twenty times, and then repeated to its end."""
  images = write_folder(tmp_path / "plates", 24)
  for name in original_layouts.NAMES:
    original_layouts.write_tree(name, tmp_path / "manual")

  def begin(name):
    out = tmp_path / name
    out.mkdir()
    if outcome not in (prepared, prompts_of):
      shutil.copytree(trained[0], out / "run")
    words = [
      word.format(out=out, tmp=tmp_path, images=images) for word in command
    ]
    if outcome is prompts_of:
      words[1:1] = arguments
    return out, words

  def finish(words):
    code, _, err = run(*words)
    assert code == 0, err

  out, words = begin("whole")
  began = time.monotonic()
  finish(words)
  duration = time.monotonic() - began
  want = outcome(out)
  rng = random.Random(outcome.__name__)
  counts = collections.Counter()
  for _ in range(20):
    out, words = begin("killed")
    process = Program(*words)
    with contextlib.suppress(TimeoutError):
      process._process.join(rng.uniform(0, 1.1 * duration))
    counts["killed" if process.poll() is None else "ended before"] += 1
    if process.poll() is None:
      process.kill()
    process.wait()
    finish(words)
    assert outcome(out) == want
    shutil.rmtree(out)
  say(f"{outcome.__name__}, killed at random", counts)
  assert counts["killed"] >= 10


def test_flipped_bits_are_detected_or_harmless(trained, tmp_path):
  """The bits are in every file that a run writes.

  A file is either verified when it is read, or no command reads it.
  """
  workdir = tmp_path / "run"
  shutil.copytree(trained[0], workdir)
  images = write_folder(tmp_path / "plates", 8)
  place = f"--workdir={workdir}"
  for command in (
    ("eval.py", place, f"--datasets={images}"),
    (*COPS, "calibrate", place, f"--data={images}"),
    (*COPS, "export", place, f"--out={workdir}/a.cops"),
    (*COPS, "weights", "save", place, f"--out={workdir}/a.safetensors"),
  ):
    code, _, err = run(*command)
    assert code == 0, err
  tree = original_layouts.write_tree("kvasir", tmp_path / "manual")
  with Checkpoints(workdir) as saved:
    _, template = saved.restore_params()

  def load():
    manual_dir = str(tree.root.parent)
    return datasets.load("kvasir", "test", str(workdir / "data"), manual_dir)

  fingerprint = load().fingerprint()

  def check_prepared(path):
    examples = load()
    assert list(examples) and examples.fingerprint() == fingerprint

  def check_checkpoint(path):
    if any(find_damage(workdir).values()):
      raise InputError("damaged")

  readers = {  # Each raises InputError or ValueError if it detects damage.
    "checkpoints": check_checkpoint,
    "data": check_prepared,
    "run.json": lambda path: read_record(workdir),
    "thresholds.json": lambda path: thresholds.read_thresholds(workdir),
    "metrics.jsonl": lambda path: metrics_log.read_metrics(workdir),
    "results.json": lambda path: tables.means_of(tables.read_results(workdir)),
    "evaluation": lambda path: unseal(path.read_bytes()),
    "a.cops": export.load,
    "a.safetensors": lambda path: load_prompts(path, template),
  }
  files = [path for path in sorted(workdir.rglob("*")) if path.is_file()]
  files = [path for path in files if path.stat().st_size]
  rng = random.Random(0)
  counts = collections.defaultdict(collections.Counter)
  for _ in range(500):
    path = rng.choice(files)
    name = path.relative_to(workdir).parts[0]
    if name not in readers:
      counts[name]["for people"] += 1
      continue
    content, stat = path.read_bytes(), path.stat()
    damaged = bytearray(content)
    damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(damaged)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    try:
      readers[name](path)
      counts[name]["harmless"] += 1
    except (InputError, ValueError):
      counts[name]["detected"] += 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  say("flipped bits", counts)
  for name in ("checkpoints", "run.json", "thresholds.json", "evaluation"):
    found = counts[name]
    # The remaining bits are in white space, for example.
    assert found["detected"] >= 0.8 * found.total(), name


BAD = (
  *("", " ", "nowhere", "/dev/null", "/proc/1", "\1", "x" * 5000, "a/../b"),
  *("-1", "nan", "1e999", "[", "{}", "é", "--", "None", "=", "folder:"),
  *("folder:/nowhere", "meta_json:/", "gs://nowhere/x", "~nobody/x"),
)


def test_bad_input_never_shows_a_traceback(trained, tmp_path):
  """Each bad value is tried in each place of each command, some 300 times."""
  workdir = tmp_path / "run"
  shutil.copytree(trained[0], workdir)
  write_folder(tmp_path / "plates", 4)
  image = tmp_path / "plates/test/good/00.png"
  old, new = f"--workdir={workdir}", f"--workdir={tmp_path}/new"
  evaluate, train = ROOT / "eval.py", ROOT / "train.py"
  places = (  # A bad value replaces {}.
    (*COPS, "predict", "{}", old),
    (*COPS, "predict", image, "--workdir={}"),
    (*COPS, "predict", image, old, "--out={}"),
    (*COPS, "calibrate", old, "--data={}"),
    (*COPS, "calibrate", old, "--normal", "{}"),
    (*COPS, "calibrate", old, "--normal", image, "--false_alarms={}"),
    (*COPS, "export", old, "--out={}"),
    (*COPS, "weights", "inspect", "{}"),
    (*COPS, "datasets", "check", "{}"),
    (*COPS, "datasets", "prepare", "{}"),
    (*COPS, "compare", "{}"),
    (evaluate, old, "--datasets={}"),
    (evaluate, old, "--checkpoint={}"),
    (evaluate, old, "--config.evaluation.beta={}"),
    (train, "--config={}", new),
    (train, "--config=demo", new, "--config.train.dataset={}"),
  )
  cases = [
    [str(word).replace("{}", bad) for word in place]
    for place in places
    for bad in BAD
  ]
  counts, failures = collections.Counter(), []
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    results = pool.map(lambda case: run(*case, folder=tmp_path), cases)
    for case, (code, _, err) in zip(cases, results, strict=True):
      counts[code] += 1
      if "Traceback" in err:
        failures.append((*case, err[-300:]))
  say("bad inputs, by exit code", counts)
  assert not failures, "\n".join(map(str, failures))


def test_the_page_survives_a_crowd(detector):
  """The crowd sends 1,000 requests, 16 at a time; some are slow or broken."""
  image = encode(make_image(0, 400, 300))
  with serve(detector) as port:
    for _ in range(20):
      post(port, image)
    before, refused = _resident_megabytes(), []

    def patient(content):
      while (status := post(port, content)[0]) == 503:  # Asked to retry.
        refused.append(1)
        time.sleep(0.05)
      return status

    def one(number):
      kind = number % 10
      if kind == 7:
        return patient(b"not an image" * 50)
      if kind == 8:  # This request stalls until the server drops it.
        with socket.create_connection(("127.0.0.1", port), timeout=60) as link:
          link.sendall(
            b"POST /api/detect HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"
          )
          time.sleep(0.2)
        return "dropped"
      if kind == 9:
        return ask(port, "GET", "/api/info")[0].status
      return patient(image)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
      counts = collections.Counter(pool.map(one, range(1000)))
    growth = _resident_megabytes() - before
  numbers = {"asked to retry": len(refused), "more memory, MB": int(growth)}
  say("requests by status", {**counts, **numbers})
  assert counts == {200: 800, 422: 100, "dropped": 100} and growth < 100


def _resident_megabytes():
  with open("/proc/self/statm") as file:
    pages = int(file.read().split()[1])
  return pages * resource.getpagesize() / 1e6
