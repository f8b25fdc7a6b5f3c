"""`make soak`: kills, flipped bits, bad input and crowds, many and at random.

Each test prints a line of numbers for docs/reliability.md.
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

from cops_jax import datasets, export, reporting, thresholds
from cops_jax.errors import InputError
from cops_jax.files import unseal
from cops_jax.runs import metrics_log
from cops_jax.runs.checkpoints import Checkpoints, find_damage
from cops_jax.runs.record import read_record
from cops_jax.weights.prompts import hash_prompts, load_prompts
from helpers import demo_pages, original_layouts
from helpers.demo_pages import ask, post, serve, to_bytes
from helpers.images import make_image, write_folder
from helpers.scripts import ROOT, Program, run

pytestmark = pytest.mark.soak

detector = demo_pages.detector

# What differs from time to time: how long it took, and when.
TIMES = (b'"seconds"', b'"images_per_second"', b'"peak_memory', b'"exported_on')


def say(name, numbers):
  print(f"\n{name}: {json.dumps(numbers)}", flush=True)


def read_all(folder):
  """Files' contents by name, without locks and the lines that tell times."""
  found = {}
  for path in sorted(folder.rglob("*")):
    if path.is_file() and not path.name.startswith("."):
      lines = path.read_bytes().split(b"\n")
      kept = [line for line in lines if not any(name in line for name in TIMES)]
      found[str(path.relative_to(folder))] = b"\n".join(kept)
  return found


@pytest.mark.parametrize(
  "kind", ("prepare", "cache", "evaluate", "calibrate", "export")
)
def test_a_command_killed_at_random_ends_as_an_uninterrupted_one(
  kind, trained, arguments, tmp_path
):
  """Twenty times each: killed, then the same command to its end."""
  images = write_folder(tmp_path / "plates", 24)
  for name in original_layouts.NAMES:
    original_layouts.write_tree(name, tmp_path / "manual")

  def command(out):
    workdir = f"--workdir={out}/run"
    return {
      "prepare": (
        *("-m", "cops_jax", "datasets", "prepare", "btad", "kvasir", "visa"),
        *(f"--data_dir={out}/data", f"--manual_dir={tmp_path}/manual"),
      ),
      "cache": (
        *("train.py", *arguments, workdir, f"--config.train.dataset={images}"),
        "--config.train.batch_size=4",
        "--config.feature_cache.dtype=float32",
        f"--config.features_dir={out}/features",
      ),
      "evaluate": (
        *("eval.py", workdir, f"--datasets={images}", "--save_maps"),
        "--config.evaluation.batch_size=2",
      ),
      "calibrate": ("-m", "cops_jax", "calibrate", workdir, f"--data={images}"),
      "export": (
        *("-m", "cops_jax", "export", workdir, f"--out={out}/model.cops"),
      ),
    }[kind]

  def begin(name):
    out = tmp_path / name
    out.mkdir()
    if kind not in ("prepare", "cache"):
      shutil.copytree(trained[0], out / "run")
    return out

  def outcome(out):
    found = read_all(out)
    for name in list(found):
      # Names of folders are in them; archives have times.
      skipped = (".html", ".md", "contents.json", "checkpoints/")
      if any(part in name for part in (*skipped, ".cops")):
        del found[name]  # Some are compared below.
      elif name.endswith(".json"):
        text = found[name].replace(str(out).encode(), b"OUT")
        lines = text.split(b"\n")
        found[name] = [line for line in lines if b'"sha256"' not in line]
    if (out / "run" / "checkpoints").exists():
      assert not any(find_damage(out / "run").values())
      with Checkpoints(out / "run") as saved:
        found["prompts"] = hash_prompts(saved.restore_params()[1])
    if kind == "prepare":
      for name in ("btad", "kvasir", "visa"):
        examples = datasets.load(name, "test", f"{out}/data")
        found[name] = examples.fingerprint()
    if kind == "export":
      metadata = export.load(out / "model.cops").metadata
      found["metadata"] = {
        key: value for key, value in metadata.items() if "sha256" in key
      }
    return found

  began = time.monotonic()
  code, _, err = run(*command(begin("whole")))
  duration = time.monotonic() - began
  assert code == 0, err
  want = outcome(tmp_path / "whole")
  rng = random.Random(kind)
  counts = collections.Counter()
  for _ in range(20):
    out = begin("killed")
    process = Program(*command(out))
    with contextlib.suppress(TimeoutError):
      process._process.join(rng.uniform(0, 1.1 * duration))
    counts["killed" if process.poll() is None else "ended before"] += 1
    if process.poll() is None:
      process.kill()
    process.wait()
    code, _, err = run(*command(out))
    assert code == 0, err
    assert outcome(out) == want
    shutil.rmtree(out)
  say(f"{kind}, killed at random", counts)
  assert counts["killed"] >= 10


def test_flipped_bits(trained, tmp_path):
  """In every file that a run writes: noticed, or read by nothing."""
  workdir = tmp_path / "run"
  shutil.copytree(trained[0], workdir)
  images = write_folder(tmp_path / "plates", 8)
  for command in (
    ("eval.py", f"--workdir={workdir}", f"--datasets={images}"),
    ("-m", "cops_jax", "calibrate", f"--workdir={workdir}", f"--data={images}"),
    (
      "-m",
      "cops_jax",
      "export",
      f"--workdir={workdir}",
      f"--out={workdir}/a.cops",
    ),
    (
      *("-m", "cops_jax", "weights", "export", "--workdir", workdir),
      *("--out", workdir / "prompts.safetensors"),
    ),
  ):
    code, _, err = run(*command)
    assert code == 0, err
  tree = original_layouts.write_tree("kvasir", tmp_path / "manual")
  data_dir = workdir / "data"
  load = lambda: datasets.load(  # noqa: E731
    "kvasir", "test", str(data_dir), str(tree.root.parent)
  )
  fingerprint = load().fingerprint()
  with Checkpoints(workdir) as saved:
    _, template = saved.restore_params()

  def check_prepared():
    examples = load()
    assert list(examples) and examples.fingerprint() == fingerprint

  def check_checkpoint():
    if any(find_damage(workdir).values()):
      raise InputError("damaged")

  def use(path):
    """Raises InputError or ValueError if what reads the file notices."""
    name = path.relative_to(workdir).as_posix()
    if name.startswith("checkpoints/"):
      return check_checkpoint
    if name.startswith("data/"):
      return check_prepared
    return {
      "run.json": lambda: read_record(workdir),
      "thresholds.json": lambda: thresholds.read_thresholds(workdir),
      "metrics.jsonl": lambda: metrics_log.read_metrics(workdir),
      "results.json": lambda: reporting.read_means(workdir),
      "evaluation/plates.json": lambda: unseal(path.read_bytes()),
      "a.cops": lambda: export.load(path),
      "prompts.safetensors": lambda: load_prompts(path, template),
    }.get(name)

  files = [path for path in sorted(workdir.rglob("*")) if path.is_file()]
  files = [path for path in files if path.stat().st_size]
  rng = random.Random(0)
  counts = collections.defaultdict(collections.Counter)
  for _ in range(500):
    path = rng.choice(files)
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    stat = path.stat()
    path.write_bytes(damaged)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    name = path.relative_to(workdir).parts[0]
    check = use(path)
    if check is None:
      outcome = "for people"
    else:
      try:
        check()
        outcome = "harmless"
      except (InputError, ValueError):
        outcome = "noticed"
    counts[name][outcome] += 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  say("flipped bits", counts)
  for name in ("checkpoints", "run.json", "thresholds.json", "evaluation"):
    found = counts[name]
    # White space and the like.
    assert found["noticed"] >= 0.8 * found.total(), name


BAD = (
  *("", " ", "nowhere", "/dev/null", "/proc/1", "\1", "x" * 5000, "a/../b"),
  *("-1", "nan", "1e999", "[", "{}", "é", "--", "None", "=", "folder:"),
  *("folder:/nowhere", "meta_json:/", "gs://nowhere/x", "~nobody/x"),
)


def test_bad_input_has_no_traceback(trained, tmp_path):
  """Each bad value in each place of each command, some 300."""
  workdir = tmp_path / "run"
  shutil.copytree(trained[0], workdir)
  write_folder(tmp_path / "plates", 4)
  image = tmp_path / "plates/test/good/00.png"
  run_flag, new_flag = f"--workdir={workdir}", f"--workdir={tmp_path}/new"
  places = (
    lambda bad: ("-m", "cops_jax", "predict", bad, run_flag),
    lambda bad: ("-m", "cops_jax", "predict", image, f"--workdir={bad}"),
    lambda bad: ("-m", "cops_jax", "predict", image, run_flag, f"--out={bad}"),
    lambda bad: ("-m", "cops_jax", "calibrate", run_flag, f"--data={bad}"),
    lambda bad: ("-m", "cops_jax", "calibrate", run_flag, "--normal", bad),
    lambda bad: (
      *("-m", "cops_jax", "calibrate", run_flag, "--normal", image),
      f"--false_alarms={bad}",
    ),
    lambda bad: ("-m", "cops_jax", "export", run_flag, f"--out={bad}"),
    lambda bad: ("-m", "cops_jax", "weights", "inspect", bad),
    lambda bad: ("-m", "cops_jax", "datasets", "check", bad),
    lambda bad: ("-m", "cops_jax", "datasets", "prepare", bad),
    lambda bad: ("-m", "cops_jax", "compare", bad),
    lambda bad: (ROOT / "eval.py", run_flag, f"--datasets={bad}"),
    lambda bad: (ROOT / "eval.py", run_flag, f"--checkpoint={bad}"),
    lambda bad: (ROOT / "eval.py", run_flag, f"--config.evaluation.beta={bad}"),
    lambda bad: (ROOT / "train.py", f"--config={bad}", new_flag),
    lambda bad: (
      *(ROOT / "train.py", "--config=demo", new_flag),
      f"--config.train.dataset={bad}",
    ),
  )
  counts, failures = collections.Counter(), []
  cases = [place(bad) for place in places for bad in BAD]
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    for case, (code, _, err) in zip(
      cases, pool.map(lambda case: _run(case, tmp_path), cases), strict=True
    ):
      counts[code] += 1
      if "Traceback" in err:
        failures.append((*map(str, case), err[-300:]))
  say("bad inputs, by exit code", counts)
  assert not failures, "\n".join(map(str, failures))


def _run(case, folder):
  return run(*case, folder=folder)


def test_a_crowd_on_the_page(detector):
  """1,000 requests, 16 at a time, with slow and broken ones among them."""
  image = to_bytes(make_image(0, 400, 300))
  with serve(detector) as port:
    for _ in range(20):
      post(port, image)
    before, refused = _resident_megabytes(), []

    def patient(content):
      while (status := post(port, content)[0]) == 503:  # As it asks for.
        refused.append(1)
        time.sleep(0.05)
      return status

    def one(number):
      kind = number % 10
      if kind == 7:
        return patient(b"not an image" * 50)
      if kind == 8:  # Stalls, and is given up.
        with socket.create_connection(("127.0.0.1", port), timeout=60) as link:
          link.sendall(
            b"POST /api/detect HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"
          )
          time.sleep(0.2)
        return "given up"
      if kind == 9:
        return ask(port, "GET", "/api/info")[0].status
      return patient(image)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
      counts = collections.Counter(pool.map(one, range(1000)))
    growth = _resident_megabytes() - before
  numbers = {"told to come back": len(refused), "more memory, MB": int(growth)}
  say("requests by status", {**counts, **numbers})
  assert counts == {200: 800, 415: 100, "given up": 100} and growth < 100


def _resident_megabytes():
  with open("/proc/self/statm") as file:
    pages = int(file.read().split()[1])
  return pages * resource.getpagesize() / 1e6
