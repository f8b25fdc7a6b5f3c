"""Training and evaluating from a bucket that no host holds as a whole."""

import json
import operator
import pathlib
import shutil
import signal

import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from cops_jax import copies, datasets, files
from cops_jax.datasets.preparation import load_prepared
from cops_jax.errors import InputError
from cops_jax.inputs.configured import load_training_examples
from cops_jax.runs.metrics_log import read_metrics
from helpers.bucket import watch_size
from helpers.cluster import end_cluster, start_cluster
from helpers.runs import flip, leaves, wait_for
from helpers.scripts import Program, run

NAME = "demo_auxiliary"
LENGTHS = (100, 40, 60, 36, 70, 50, 20, 80, 44, 76)
WINDOW = "--config.input.shuffle_window_shards=2"


@pytest.fixture(scope="module")
def in_shards(data_dir, tmp_path_factory):
  """The demo's data set once more, in shards of these lengths."""
  datasets.load(NAME, "test", data_dir)
  root = tmp_path_factory.mktemp("data")
  shutil.copytree(pathlib.Path(data_dir, NAME), root / NAME)
  folder = root / NAME / "1.0.0"
  (whole,) = folder.glob("*.array_record-*")
  records = iter(ArrayRecordDataSource(str(whole)))
  for number, length in enumerate(LENGTHS):
    name = f"{NAME}-test.array_record-{number:05}-of-{len(LENGTHS):05}"
    writer = ArrayRecordWriter(str(folder / name), "group_size:1")
    for _ in range(length):
      writer.write(next(records))
    writer.close()
  assert not list(records)
  whole.unlink()
  (folder / "contents.json").unlink()
  path = folder / "dataset_info.json"
  info = json.loads(path.read_text())
  info["splits"][0]["shardLengths"] = list(map(str, LENGTHS))
  path.write_text(json.dumps(info))
  assert len(datasets.load(NAME, "test", str(root))) == sum(LENGTHS)
  return root


@pytest.fixture
def limit(in_shards):
  """What two windows need; a third of the data set."""
  sizes = sorted(p.stat().st_size for p in in_shards.rglob("*.array_record-*"))
  limit = sum(sizes[-4:])
  assert limit < 0.6 * sum(sizes)
  return limit


@pytest.fixture
def by_shards(arguments, bucket, in_shards, limit):
  copies.send(in_shards / NAME, f"{bucket}/data/{NAME}")
  return [
    *(*arguments, WINDOW, f"--config.data_dir={bucket}/data"),
    f"--config.input.copy_gigabytes={limit / 1e9!r}",
  ]


@pytest.fixture(scope="module")
def whole(arguments, in_shards, tmp_path_factory):
  """The same order from a local disk."""
  workdir = tmp_path_factory.mktemp("whole")
  code, _, err = run(
    *("train.py", *arguments, WINDOW, f"--config.data_dir={in_shards}"),
    f"--workdir={workdir}",
  )
  assert code == 0, err
  return workdir


def assert_same_training(workdir, whole):
  assert read_metrics(workdir) == read_metrics(whole)
  for item in ("params", "opt_state"):
    assert leaves(workdir, 9, item) == leaves(whole, 9, item)


def test_training_equals_that_on_a_local_disk(
  by_shards, limit, whole, trained, tmp_path
):
  """Killed after a checkpoint; with worker processes after that."""
  train = ("train.py", *by_shards, f"--workdir={tmp_path}/run")
  folder = copies.home() / "shards"
  with watch_size(folder) as sizes:
    process = Program(*train)
    wait_for(tmp_path / "run/checkpoints/4/manifest.json", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    code, _, err = run(*train, "--config.input.num_workers=2")
    assert code == 0, err
    assert "resuming" in err and "by shards: 10 of together" in err
    assert_same_training(tmp_path / "run", whole)
    # Another order than that of all together.
    assert read_metrics(whole) != read_metrics(trained[0])
  assert 0.5 * limit < max(sizes) <= limit
  # Only descriptions are beside it.
  assert not list((copies.home() / "gs").rglob("*.array_record*"))


@pytest.mark.soak
def test_two_processes_share_the_copies(by_shards, limit, whole, tmp_path):
  """And fill a cache of features, which reads all in the data set's order."""
  command = (
    *("train.py", *by_shards, f"--workdir={tmp_path}"),
    *(
      "--config.feature_cache.dtype=float32",
      f"--config.features_dir={tmp_path}",
    ),
  )
  with watch_size(copies.home() / "shards") as sizes:
    codes, logs = end_cluster(start_cluster(2, 4, *command))
  assert codes == [0, 0], logs
  assert max(sizes) <= limit
  rows, want = read_metrics(tmp_path), read_metrics(whole)
  for row, one in zip(rows, want, strict=True):
    assert row["loss"] == pytest.approx(one["loss"], rel=1e-4)


@pytest.mark.soak
def test_a_server_that_goes_ends_the_run(by_shards, server, tmp_path):
  """With one sentence, whenever the shard is needed."""
  with server.failing(403, text="00007-of-00010?alt=media"):
    code, _, err = run("train.py", *by_shards, f"--workdir={tmp_path}")
  assert code == 1 and "Traceback" not in err, err
  (message,) = [line for line in err.splitlines() if line.startswith("error:")]
  assert "00007-of-00010 cannot be copied to" in message


@pytest.fixture
def config_by_shards(config, by_shards, bucket, limit):
  config.data_dir = f"{bucket}/data"
  config.input.copy_gigabytes = limit / 1e9
  config.input.shuffle_window_shards = 2
  return config


def test_what_was_changed_in_the_bucket_is_refused(
  by_shards, in_shards, bucket, limit
):
  def load():
    return load_prepared(NAME, "test", f"{bucket}/data", None, limit)

  examples = load()
  # As an evaluation reads them.
  local = datasets.load(NAME, "test", str(in_shards))
  assert all(map(operator.eq, examples, local)) and len(examples) == len(local)
  assert examples.digests() == local.digests()
  folder = f"{bucket}/data/{NAME}/1.0.0"
  (name,) = [name for name in files.find_files(folder) if "-00007-" in name]
  flip(f"{folder}/{name}")
  with pytest.raises(
    InputError, match="-00007-of-00010 has been changed since"
  ):
    list(load())
  files.delete(f"{folder}/{name}")
  with pytest.raises(InputError, match="contents.json is not of the files be"):
    load()
  flip(f"{folder}/contents.json")
  with pytest.raises(
    InputError, match="contents.json is damaged .* so it is in"
  ):
    load()


@pytest.mark.parametrize(
  "field, value, expected",
  (
    ("shuffle_window_shards", 3, "shards 3 needs 6 of the 10 shards in gs://"),
    ("shuffle_window_shards", 0, r"0 \(all together\) needs 10 of the 10 sha"),
    ("copy_gigabytes", 0.001, "is 0.001, and reading needs 2 of the 10 shards"),
  ),
)
def test_what_does_not_fit_is_refused(config_by_shards, field, value, expected):
  config_by_shards.input[field] = value
  with pytest.raises(InputError, match=expected):
    load_training_examples(config_by_shards)


def test_a_folder_has_no_shards(config, tmp_path):
  for name in ("test/good", "test/bad", "ground_truth/bad"):
    (tmp_path / name).mkdir(parents=True)
    Image.new("L", (9, 9), 255).save(tmp_path / name / "1.png")
  config.train.dataset = f"folder:{tmp_path}"
  load_training_examples(config)
  config.input.shuffle_window_shards = 2
  with pytest.raises(InputError, match="its files, which are not in shards"):
    load_training_examples(config)
