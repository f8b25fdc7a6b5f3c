"""eval.py in several processes."""

import shutil

from cops_jax.reporting.tables import read_results
from helpers.cluster import end_cluster, start_cluster
from helpers.images import write_folder


def test_two_processes_give_the_scores_of_one(trained, tmp_path):
  """Seven images in threes: batches, and the last one, are not full."""
  data = write_folder(tmp_path / "plates", 7)
  found = {}
  for num_processes in (1, 2):
    workdir = tmp_path / str(num_processes)
    shutil.copytree(trained[0], workdir, ignore=shutil.ignore_patterns("*.csv"))
    cluster = start_cluster(
      *(num_processes, 2 // num_processes, "eval.py"),
      *(f"--workdir={workdir}", f"--datasets={data}"),
      *("--config.evaluation.batch_size=3", "--save_maps"),
      "--config.evaluation.tiles=1x2",
    )
    codes, logs = end_cluster(cluster)
    assert codes == num_processes * [0], logs
    (results,) = read_results(workdir)["datasets"].values()
    scores = (workdir / "scores.csv").read_text()
    found[num_processes] = scores, results["categories"]
  assert found[2] == found[1]
  assert len(found[1][0].splitlines()) == 1 + 7
