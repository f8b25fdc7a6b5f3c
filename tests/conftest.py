"""Strict defaults for tests: eight devices, no rank promotion, checked shapes.

The fixtures that several test files share are here.
"""

import importlib
import multiprocessing.util
import os
import pathlib
import shutil
import tempfile

import jaxlib

# Tests spend most of their time in the compiler. With few optimizations it is
# ten times as fast, here and in the processes that tests start.
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 compiles as users' programs do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if (
  os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1"
  # Later versions lack this flag, and abort on an unknown one.
  and jaxlib.version.__version_info__ < (0, 11)
):
  os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"
  )
os.environ["JAX_NUM_CPU_DEVICES"] = "8"

# Most tests compile the same small models, many of them in new processes.
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR",
  str(pathlib.Path(__file__).parent.parent / ".pytest_cache" / "jax"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # Telemetry leaves a temporary file.

import filelock
import jax
import numpy as np
import pytest
from jaxtyping import install_import_hook

from helpers.bucket import BUCKET, Server
from helpers.clip_config import make_clip_config
from helpers.config import make_config, small_fields
from helpers.scripts import reduce_garbage_collection, run, run_exit_functions

reduce_garbage_collection()

jax.config.update("jax_numpy_rank_promotion", "raise")
# Parity is tested in full float32, not in the default of the hardware.
jax.config.update("jax_default_matmul_precision", "highest")
# The hook also recompiles other packages that are first imported inside a
# module with the hook. Importing the large ones before it avoids this.
for _name in (
  *("absl.flags", "clu.parameter_overview", "grain", "optax"),
  *("orbax.checkpoint", "scipy.ndimage", "tensorflow_datasets"),
  "transformers.models.clip.modeling_flax_clip",
):
  importlib.import_module(_name)
install_import_hook("cops_jax", "beartype.beartype")


@pytest.hookimpl(tryfirst=True)
def pytest_unconfigure(config):
  """Ends a worker at once, without freeing millions of objects."""
  if "PYTEST_XDIST_WORKER" in os.environ:
    run_exit_functions()
    os._exit(0)


# The slowest files start first, so that all workers end at about the same time.
_FIRST = (
  *("test_processes", "test_runs_in_buckets", "test_documentation"),
  *("test_loop", "test_evaluator", "test_step", "test_page", "test_resume"),
  *("test_cops", "test_engine", "test_predict", "test_benchmarks"),
  *("test_feature_cache", "test_clip", "test_onnx", "test_jax"),
  *("test_anomalyclip", "test_platforms", "test_cluster", "test_many"),
  *("test_original_files", "test_prompt_ensemble", "test_server"),
  *("test_notebooks", "test_ablate", "test_publish"),
)


def pytest_collection_modifyitems(items):
  places = {name: place for place, name in enumerate(_FIRST)}
  items.sort(key=lambda item: places.get(item.path.stem, len(_FIRST)))


def _share(tmp_path_factory, name, fill):
  """Returns a folder that all workers share; the first worker fills it."""
  base = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:
    base = base.parent
  folder = base / name
  with filelock.FileLock(f"{folder}.lock"):
    if not folder.exists():
      partial = base / f"{name}.partial"
      partial.mkdir()
      fill(partial)
      partial.rename(folder)
  return folder


@pytest.fixture(scope="session", autouse=True)
def _temporary_folder(tmp_path_factory):
  """Fails if a test, or a program that it starts, leaves a temporary file."""
  multiprocessing.util.get_temp_dir()  # Exists until this process ends.
  folder = tmp_path_factory.mktemp("tmp")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TMPDIR", str(folder))
    patch.setattr(tempfile, "tempdir", str(folder))
    yield
  left = [path.name for path in folder.iterdir()]
  assert not left, f"left in the temporary folder: {left}"


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
  """Folder of prepared data sets, where the demo's are generated once."""
  # Preparation holds a lock, so the folder can start empty.
  return str(_share(tmp_path_factory, "data", fill=lambda folder: None))


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
  """Hugging Face folder of a small CLIP with random weights."""
  return _share(tmp_path_factory, "clip", _write_clip)


def _write_clip(folder):
  from transformers import CLIPConfig

  from cops_jax.weights.clip import DEMO_FOLDER
  from cops_jax.weights.clip_names import clip_param_shapes
  from tools.pretrain_demo_clip.model import save_clip

  demo = DEMO_FOLDER
  for name in ("vocab.json", "merges.txt"):
    shutil.copy(demo / name, folder)
  vocab_size = CLIPConfig.from_pretrained(demo).text_config.vocab_size
  config = make_clip_config(
    *((24, 3, 2), (32, 3, 2), 24, 64, 16), vocab_size=vocab_size
  )
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32),
    clip_param_shapes(config),
  )
  save_clip(folder, config, params)


@pytest.fixture
def config(clip_folder, data_dir):
  return make_config(clip_folder, data_dir)


@pytest.fixture(scope="session")
def arguments(clip_folder, data_dir):
  """Flags with the overrides of the `config` fixture."""
  fields = small_fields(clip_folder, data_dir)
  return [
    "--config=configs/demo.py",
    *(f"--config.{name}={value}" for name, value in fields.items()),
  ]


@pytest.fixture(scope="session")
def trained(arguments, tmp_path_factory):
  """The run directory of a training, copied for each worker, and the log."""

  def train(folder):
    code, _, err = run("train.py", *arguments, f"--workdir={folder}/run")
    assert code == 0, err
    (folder / "messages").write_text(err)

  folder = _share(tmp_path_factory, "trained", train)
  workdir = tmp_path_factory.mktemp("trained") / "run"
  shutil.copytree(folder / "run", workdir)
  return workdir, (folder / "messages").read_text()


@pytest.fixture(scope="session")
def published(trained, tmp_path_factory):
  """Folder of published prompts with thresholds; the run is next to it.

  Tests that change either copy it first.
  """
  from cops_jax import publish, thresholds
  from cops_jax.runs.checkpoints import Checkpoints
  from cops_jax.weights.prompts import hash_prompts

  folder = tmp_path_factory.mktemp("published")
  shutil.copytree(trained[0], folder / "run")
  with Checkpoints(folder / "run") as saved:
    digest = hash_prompts(jax.device_get(saved.restore_params()[1]))
  chosen = thresholds.Thresholds(0.5, 0.25, "by hand", digest)
  thresholds.write_thresholds(folder / "run", chosen)
  publish.publish(folder / "run", folder / "tiny")
  return folder / "tiny"


@pytest.fixture(scope="session")
def _server():
  """The one bucket server of all tests, since etils keeps its first client."""
  server = Server()
  yield server
  server.stop()


@pytest.fixture
def server(_server, monkeypatch, tmp_path):
  """Server of an empty bucket; local copies go to this test's own cache."""
  _server.reset()
  for name, value in _server.environment().items():
    monkeypatch.setenv(name, value)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setenv("NO_GCE_CHECK", "true")  # The check waits for the network.
  return _server


@pytest.fixture
def bucket(server):
  """Address of the server's bucket."""
  return f"gs://{BUCKET}"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
  """Headless Chromium; tests that need it are skipped without it."""
  chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
  if not (chromium and driver):
    pytest.skip("needs chromium and chromedriver")
  from selenium import webdriver

  options = webdriver.ChromeOptions()
  options.binary_location = chromium
  for flag in (
    *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"),
    *("disable-background-networking", "disable-component-update"),
    "disable-sync",
  ):
    options.add_argument(f"--{flag}")
  options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
  # Chromium does not delete its temporary files.
  temporary = {"TMPDIR": str(tmp_path_factory.mktemp("chromium"))}
  service = webdriver.ChromeService(
    executable_path=driver, env=os.environ | temporary
  )
  with webdriver.Chrome(options, service) as browser:
    yield browser
