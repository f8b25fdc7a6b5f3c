"""Evaluation by eval.py in several processes."""

import shutil

import numpy as np

from cops_jax.files import unseal
from helpers.cluster import end_cluster, start_cluster
from helpers.images import write_folder


def read_maps(folder):
  maps = {}
  for path in folder.glob("*.npz"):
    with np.load(path) as file:
      maps |= {name: file[name] for name in file.files}
  return maps


def test_two_processes_have_the_results_of_one(trained, tmp_path):
  """Seven images in batches of three leave some batches partly empty."""
  data = write_folder(tmp_path / "plates", 7)
  shutil.copytree(tmp_path / "plates/test/good", tmp_path / "plates/train/good")
  tables, results, maps = [], [], []
  for num_processes in (1, 2):
    workdir = tmp_path / str(num_processes)
    shutil.copytree(trained[0], workdir, ignore=shutil.ignore_patterns("*.csv"))
    cluster = start_cluster(
      *(num_processes, 2 // num_processes, "eval.py"),
      *(f"--workdir={workdir}", f"--datasets={data}"),
      *("--config.evaluation.batch_size=3", "--save_maps"),
      "--config.evaluation.tiles=1x2",
      "--config.evaluation.num_normal_images=3",
    )
    codes, logs = end_cluster(cluster)
    assert codes == num_processes * [0], logs
    tables.append((workdir / "scores.csv").read_text())
    kept = unseal((workdir / "evaluation" / "plates.json").read_text())
    results.append(kept["result"])
    maps.append(read_maps(workdir / "maps" / "plates"))
  assert tables[1] == tables[0]
  assert len(tables[0].splitlines()) == 1 + 7
  # The pixels and pictures of both processes are included.
  assert not np.isnan(results[0]["categories"]["plates"]["metrics"]["pixel_ap"])
  for field in ("categories", "images", "normal_images"):
    assert results[1][field] == results[0][field]
  shown = [
    [(picture["kind"], picture["image"]["path"]) for picture in one["pictures"]]
    for one in results
  ]
  assert shown[1] == shown[0] and len(shown[0]) > 3
  assert maps[1].keys() == maps[0].keys() and len(maps[0]) == 7
  for name, anomaly_map in maps[0].items():
    np.testing.assert_allclose(maps[1][name], anomaly_map, atol=1e-3)
