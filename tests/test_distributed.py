"""Real processes that form one cluster on this host."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from cops_jax import distributed, training
from cops_jax.checkpoints import Checkpoints
from cops_jax.errors import InputError

ROOT = pathlib.Path(__file__).parent.parent


def free_port():
  with socket.socket() as one:
    one.bind(("127.0.0.1", 0))
    return one.getsockname()[1]


def run_cluster(num_processes, num_devices, *arguments):
  """train.py in several processes; their outputs."""
  address = f"--coordinator_address=127.0.0.1:{free_port()}"
  flags = f"--xla_force_host_platform_device_count={num_devices}"
  processes = [
    subprocess.Popen(
      [
        *(sys.executable, "train.py", *arguments, address),
        f"--num_processes={num_processes}",
        f"--process_id={index}",
      ],
      cwd=ROOT,
      env={**os.environ, "XLA_FLAGS": flags},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(num_processes)
  ]
  results = []
  for process in processes:
    _, err = process.communicate(timeout=300)
    results.append((process.returncode, err))
  return results


def metrics(workdir):
  text = (workdir / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def params(workdir):
  with Checkpoints(workdir) as saved:
    step, tree = saved.restore_params()
  assert step == 20
  return jax.device_get(tree)


def test_two_processes_train_and_evaluate_as_one(config, clip_folder, tmp_path):
  """2 processes of 4 devices, and this one of 8, for 20 steps."""
  settings = {
    "data_dir": config.data_dir,
    "clip.weights": clip_folder,
    "model.image_size_pixels": 48,
    "model.feature_layers": "(2,3)",
    "model.num_value_layers": 2,
    "model.num_heads": 4,
    "model.deep_prompt_depth": 2,
    "train.num_epochs": 1,
    "train.batch_size": 29,
    "train.log_every_steps": 1,
    "train.checkpoint_every_steps": 20,
    "train.evaluate_every_steps": 20,
    "evaluation.batch_size": 100,
  }
  config.train.batch_size = 29
  config.train.log_every_steps = 1
  config.train.checkpoint_every_steps = 20
  config.train.evaluate_every_steps = 20
  one, two = tmp_path / "one", tmp_path / "two"
  training.train(config, one, profile_steps=(2, 3))
  assert list((one / "profile").rglob("*.xplane.pb"))
  (first, log), (second, silence) = run_cluster(
    *(2, 4),
    "--config=configs/demo.py",
    f"--workdir={two}",
    *(f"--config.{name}={value}" for name, value in settings.items()),
  )
  assert first == 0, log
  assert second == 0, silence
  assert "8 cpu device(s) of 2 process(es)" in log
  assert "cpu device(s)" not in silence

  rows, other_rows = metrics(one), metrics(two)
  assert [row["step"] for row in rows] == [*range(1, 21), 20]
  for row, other in zip(rows, other_rows, strict=True):
    assert row.keys() == other.keys()
    for name in row.keys() - {"gradient_norm"}:
      # What was evaluated counts ranks, which change one at a time.
      tolerance = 1e-3 if "/" in name else 1e-5
      want = pytest.approx(row[name], rel=tolerance, abs=1e-5)
      assert other[name] == want, name
  assert "demo_unseen/pixel_auroc" in rows[-1]
  whole, other = params(one), params(two)
  difference = jax.tree.map(np.subtract, whole, other)
  assert optax.tree.norm(difference) <= 1e-4 * optax.tree.norm(whole)
  names = {path.name for path in one.iterdir()} - {"profile"}
  assert {path.name for path in two.iterdir()} == names


@pytest.mark.parametrize(
  "arguments, expected",
  (
    (("host:1", None, 0), "^--num_processes must be given too"),
    ((None, 2, None), "^--coordinator_address and --process_id must be"),
    (("host:1", 2, 2), "--process_id is 2; with 2 processes it must be from 0"),
    ((None, None, None), "did not come together as one cluster"),
  ),
)
def test_bad_arguments(arguments, expected):
  with pytest.raises(InputError, match=expected):
    distributed.start(*arguments)
