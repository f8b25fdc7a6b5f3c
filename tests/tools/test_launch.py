"""Launch scripts, with replacements for the programs that they call."""

import math
import os
import signal
import subprocess

import pytest
import yaml

from cops_jax import config
from helpers.scripts import ROOT

FOLDER = ROOT / "tools/launch"

SLURM = """#!/bin/sh
echo "$(basename "$0") $*" >> "$CALLS"
[ "$(basename "$0")" != srun ] || exit "$STATUS"
"""


@pytest.mark.parametrize(
  "status, variables, again",
  (
    (0, {}, False),
    (1, {}, False),
    (75, {}, True),
    (134, {}, True),
    (137, {"SLURM_NTASKS": "32"}, True),
    (75, {"SLURM_RESTART_COUNT": "50"}, False),
  ),
)
def test_a_slurm_job_is_requeued_if_it_can_resume(
  tmp_path, status, variables, again
):
  """If there are several processes, they form a cluster."""
  for name in ("srun", "scontrol"):
    (tmp_path / name).write_text(SLURM)
    (tmp_path / name).chmod(0o755)
  calls = tmp_path / "calls"
  done = subprocess.run(
    ["bash", FOLDER / "slurm.sh", "--config=visa", "--workdir=a b"],
    env={
      "PATH": f"{tmp_path}:{os.environ['PATH']}",
      **{"CALLS": str(calls), "STATUS": str(status), "SLURM_JOB_ID": "7"},
      **variables,
    },
    capture_output=True,
    text=True,
  )
  assert done.returncode == status
  assert ("after 50 restarts" in done.stderr) == (
    "SLURM_RESTART" in str(variables)
  )
  command = "python train.py --config=visa --workdir=a b"
  command += " --distributed" * ("SLURM_NTASKS" in variables)
  assert calls.read_text().splitlines() == [
    f"srun --kill-on-bad-exit=0 {command}",
    *["scontrol requeue 7"] * again,
  ]


def test_slurm_reads_the_options_of_the_script():
  """The options come first, as sbatch requires, and fit train.py."""
  lines = (FOLDER / "slurm.sh").read_text().splitlines()
  assert lines[0] == "#!/bin/bash"
  options = {}
  for line in lines[1:]:
    if not line.startswith("#SBATCH "):
      break
    name, _, value = line.removeprefix("#SBATCH --").partition("=")
    options[name] = value
  # Under Slurm, JAX assigns one GPU to each process.
  assert options["ntasks-per-node"] == options["gpus-per-node"]
  assert options["requeue"] == "" and options["open-mode"] == "append"
  kind, _, seconds = options["signal"].partition("@")
  # With "B:", only the script would get the signal.
  assert kind == "TERM" and int(seconds) >= 120
  assert not any("#SBATCH" in line for line in lines[len(options) + 1 :])


COUNT = """
count=$(cat "$0" 2> /dev/null || echo 0)
echo $((count + 1)) > "$0"
(( count >= $1 )) && exit "$3"
exit "$2"
"""


@pytest.mark.parametrize(
  "early, times, last, ran",
  (
    (75, 1, 0, 2),
    (137, 1, 0, 2),
    (134, 1, 1, 2),
    (1, 5, 1, 1),
    (75, 99, 0, 51),
  ),
)
def test_a_command_is_run_again_if_it_can_resume(
  tmp_path, early, times, last, ran
):
  file = tmp_path / "count"
  values = map(str, (file, times, early, last))
  done = subprocess.run(
    ["bash", FOLDER / "restart.sh", "bash", "-c", COUNT, *values],
    capture_output=True,
    text=True,
    timeout=60,
  )
  gave_up = ran == 51
  assert done.returncode == (75 if gave_up else last)
  assert ("after 50 restarts" in done.stderr) == gave_up
  assert int(file.read_text()) == ran


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGINT))
def test_a_signal_reaches_the_command_and_ends_both(tmp_path, number):
  saving = (
    "trap 'echo saved; exit 75' TERM; echo ready; while :; do sleep 0.02; done"
  )
  process = subprocess.Popen(
    # A process that was started in the background can ignore Ctrl-C.
    ["env", "--default-signal=INT", "bash", FOLDER / "restart.sh"]
    + ["bash", "-c", saving],
    stdout=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  try:
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.communicate(timeout=60)[0] == "saved\n"
  except subprocess.TimeoutExpired:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    raise
  assert process.returncode == 75


def test_the_gke_manifest_is_valid():
  """It follows the rules of JobSet, of jobs and of TPU node pools."""
  text = (FOLDER / "gke.yaml").read_text()
  jobs = yaml.safe_load(text)
  (replicated,) = jobs["spec"]["replicatedJobs"]
  job = replicated["template"]["spec"]
  pod = job["template"]["spec"]
  (container,) = pod["containers"]
  # One slice has a pod for each host, which uses all chips of the host.
  topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
  num_chips = math.prod(int(size) for size in topology.split("x"))
  assert replicated["replicas"] == 1
  assert job["parallelism"] == job["completions"]
  resources = container["resources"]
  assert resources["limits"] == resources["requests"]
  assert job["completions"] * resources["limits"]["google.com/tpu"] == num_chips

  # A pod failure policy requires "Never". If one pod ends, the job ends.
  assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0
  lost, error = job["podFailurePolicy"]["rules"]
  assert lost["action"] == "Count"
  assert error["action"] == "FailJob"
  codes = error["onExitCodes"]
  assert codes["operator"] == "NotIn" and codes["values"] == [75, 134, 137, 143]
  assert codes["containerName"] == container["name"]
  # Jobs that the policy fails have this reason; all other jobs are restarted.
  (rule,) = jobs["spec"]["failurePolicy"]["rules"]
  assert rule["action"] == "FailJobSet"
  assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  assert pod["terminationGracePeriodSeconds"] >= 120

  # train.py knows the flags of the command.
  python, script, *flags = container["command"]
  assert (python, script) == ("python", "train.py") and "--distributed" in flags
  values = dict(flag[2:].partition("=")[::2] for flag in flags)
  recipe = config.recipe(values.pop("config"))
  fields = config.flatten(recipe.to_dict(), "config.")
  assert set(values) - set(fields) == {"workdir", "distributed"}
  assert int(values["config.train.batch_size"]) % num_chips == 0
  assert values["workdir"].startswith("gs://BUCKET/")
  # The data are mounted, and the job can take over the lock of a killed pod.
  (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
  assert values["config.data_dir"] == mount["mountPath"]
  assert volume["name"] == mount["name"]
  assert volume["csi"]["volumeAttributes"]["bucketName"] == "BUCKET"
  assert [entry["name"] for entry in container["env"]] == ["COPS_JAX_JOB"]
