"""eval.py in several processes."""

import shutil

import numpy as np
from PIL import Image

from helpers.cluster import end_cluster, start_cluster


def make_images(root, number):
  rng = np.random.default_rng(0)
  for index in range(number):
    kind = ("good", "bad")[index % 2]
    path = root / "test" / kind / f"{index}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(path)
    if kind == "bad":
      mask = Image.new("L", (20, 20))
      mask.paste(255, (index, 2, index + 5, 9))
      path = root / "ground_truth" / kind / f"{index}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      mask.save(path)
  return f"folder:{root}"


def test_two_processes_give_the_scores_of_one(trained, tmp_path):
  """Seven images in threes: batches, and the last one, are not full."""
  data = make_images(tmp_path / "plates", 7)
  found = {}
  for num_processes in (1, 2):
    workdir = tmp_path / str(num_processes)
    shutil.copytree(trained[0], workdir, ignore=shutil.ignore_patterns("*.csv"))
    cluster = start_cluster(
      *(num_processes, 2 // num_processes, "eval.py"),
      *(f"--workdir={workdir}", f"--datasets={data}"),
      *("--config.evaluation.batch_size=3", "--save_maps"),
    )
    codes, logs = end_cluster(cluster)
    assert codes == num_processes * [0], logs
    found[num_processes] = {
      name: (workdir / name).read_text()
      for name in ("scores.csv", "results.csv")
    }
  assert found[2] == found[1]
  assert len(found[1]["scores.csv"].splitlines()) == 1 + 7
