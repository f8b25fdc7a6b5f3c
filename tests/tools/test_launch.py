"""Launch scripts, with stand-ins for what they call."""

import math
import os
import re
import shlex
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


@pytest.fixture
def launch(tmp_path):
  """Runs the Slurm script; gives exit status, calls, output and errors."""
  for name in ("srun", "scontrol"):
    (tmp_path / name).write_text(SLURM)
    (tmp_path / name).chmod(0o755)

  def call(*arguments, status=0, **variables):
    calls = tmp_path / "calls"
    calls.write_text("")
    environment = {
      "PATH": f"{tmp_path}:{os.environ['PATH']}",
      "CALLS": str(calls),
      "STATUS": str(status),
      "SLURM_JOB_ID": "7",
      **variables,
    }
    done = subprocess.run(
      ["bash", FOLDER / "slurm.sh", *arguments],
      env=environment,
      capture_output=True,
      text=True,
    )
    lines = calls.read_text().splitlines()
    return done.returncode, lines, done.stdout, done.stderr

  return call


RUN = "srun --kill-on-bad-exit=0 python train.py --config=visa --workdir=a b"


@pytest.mark.parametrize("status", (0, 1, 75, 134, 137))
def test_the_job_goes_on_where_it_can(launch, status):
  code, calls, _, err = launch("--config=visa", "--workdir=a b", status=status)
  assert code == status and not err
  again = ["scontrol requeue 7"] if status in (75, 134, 137) else []
  assert calls == [RUN, *again]


def test_several_processes_are_one_cluster(launch):
  _, calls, _, _ = launch("--config=visa", "--workdir=a b", SLURM_NTASKS="32")
  assert calls == [f"{RUN} --distributed"]


def test_it_does_not_go_on_for_ever(launch):
  code, calls, _, err = launch(
    *("--config=visa", "--workdir=a b"), status=75, SLURM_RESTART_COUNT="50"
  )
  assert code == 75 and calls == [RUN] and "after 50 times" in err


def test_a_dry_run_prints_and_runs_nothing(launch):
  code, calls, out, _ = launch("--dry_run", "--config=visa", "--workdir=a b")
  assert code == 0 and not calls
  assert out == RUN.replace("a b", "a\\ b") + " \n"


def test_options_that_slurm_reads():
  """The script's own rules: directives come first, each with a value."""
  lines = (FOLDER / "slurm.sh").read_text().splitlines()
  assert lines[0] == "#!/bin/bash"
  options = {}
  for line in lines[1:]:
    if not line.startswith("#SBATCH "):
      break
    name, _, value = line.removeprefix("#SBATCH --").partition("=")
    options[name] = value
  # Under Slurm, JAX gives each process one GPU.
  assert options["ntasks-per-node"] == options["gpus-per-node"]
  assert options["requeue"] == "" and options["open-mode"] == "append"
  kind, _, seconds = options["signal"].partition("@")
  # Not "B:", which would tell the script alone.
  assert kind == "TERM" and int(seconds) >= 120
  assert not any("#SBATCH" in line for line in lines[len(options) + 1 :])


COUNT = """
count=$(cat "$0" 2> /dev/null || echo 0)
echo $((count + 1)) > "$0"
(( count >= $1 )) && exit "$3"
exit "$2"
"""


def restart(*arguments):
  done = subprocess.run(
    ["bash", FOLDER / "restart.sh", *map(str, arguments)],
    capture_output=True,
    text=True,
    timeout=30,
  )
  return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
  "early, times, last",
  ((75, 2, 0), (137, 1, 0), (134, 1, 0), (75, 1, 1), (1, 5, 1)),
)
def test_a_command_is_run_again_where_it_can_go_on(
  tmp_path, early, times, last
):
  file = tmp_path / "count"
  code, _, err = restart("bash", "-c", COUNT, file, times, early, last)
  ran = 1 if early == 1 else times + 1
  assert (code, err, int(file.read_text())) == (last, "", ran)


def test_a_command_is_not_run_again_for_ever(tmp_path):
  file = tmp_path / "count"
  code, _, err = restart("bash", "-c", COUNT, file, 99, 75, 0)
  assert code == 75 and "after 50 times" in err and file.read_text() == "51\n"


def test_restart_without_a_command_and_without_running_it():
  code, _, err = restart()
  assert code == 2 and err.startswith("no command is given. usage: restart.sh")
  assert restart("--dry_run", "echo", "a b") == (0, "echo a\\ b \n", "")
  assert restart("no-such-command")[0] == 127


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGINT))
def test_a_signal_reaches_the_command_and_ends_both(tmp_path, number):
  saving = (
    "trap 'sleep 0.2; echo saved; exit 75' TERM; echo ready;"
    " while :; do sleep 0.02; done"
  )
  process = subprocess.Popen(
    ["bash", FOLDER / "restart.sh", "bash", "-c", saving],
    stdout=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  try:
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.communicate(timeout=10)[0] == "saved\n"
  except subprocess.TimeoutExpired:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    raise
  assert process.returncode == 75


def test_gke_manifest():
  """By the rules of JobSet, of jobs and of TPU node pools."""
  text = (FOLDER / "gke.yaml").read_text()
  jobs = yaml.safe_load(text)
  assert jobs["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
  assert jobs["kind"] == "JobSet"
  label = re.compile("[a-z]([-a-z0-9]*[a-z0-9])?")
  (replicated,) = jobs["spec"]["replicatedJobs"]
  job = replicated["template"]["spec"]
  pod = job["template"]["spec"]
  (container,) = pod["containers"]
  for name in (jobs["metadata"]["name"], replicated["name"], container["name"]):
    assert label.fullmatch(name) and len(name) < 40

  # One slice: a pod for each host, which has all of the host's chips.
  topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
  num_chips = math.prod(int(size) for size in topology.split("x"))
  assert replicated["replicas"] == 1
  assert job["parallelism"] == job["completions"]
  resources = container["resources"]
  assert resources["limits"] == resources["requests"]
  assert job["completions"] * resources["limits"]["google.com/tpu"] == num_chips
  accelerator = pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"]
  assert accelerator == "tpu-v5-lite-podslice" and num_chips == 16

  # A pod failure policy asks for it. One pod's end is the job's.
  assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0
  lost, error = job["podFailurePolicy"]["rules"]
  assert lost["action"] == "Count"
  assert lost["onPodConditions"] == [
    {"type": "DisruptionTarget", "status": "True"}
  ]
  assert error["action"] == "FailJob"
  codes = error["onExitCodes"]
  assert codes["operator"] == "NotIn" and codes["values"] == [75, 134, 137, 143]
  assert codes["containerName"] == container["name"]
  # What the policy fails has this reason; all else begins again.
  policy = jobs["spec"]["failurePolicy"]
  assert policy["maxRestarts"] > 0
  (rule,) = policy["rules"]
  assert rule["action"] == "FailJobSet"
  assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  assert pod["terminationGracePeriodSeconds"] >= 120

  # The command is one that train.py knows.
  python, script, *flags = container["command"]
  assert (python, script) == ("python", "train.py") and "--distributed" in flags
  values = dict(flag[2:].partition("=")[::2] for flag in flags)
  recipe = config.recipe(values.pop("config"))
  fields = config.flatten(recipe.to_dict(), "config.")
  assert set(values) - set(fields) == {"workdir", "distributed"}
  assert int(values["config.train.batch_size"]) % num_chips == 0
  assert values["workdir"].startswith("gs://BUCKET/")
  # The data are a mount, and a killed pod's lock is its own job's.
  (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
  assert values["config.data_dir"] == mount["mountPath"]
  assert volume["name"] == mount["name"]
  assert volume["csi"]["volumeAttributes"]["bucketName"] == "BUCKET"
  assert [entry["name"] for entry in container["env"]] == ["COPS_JAX_JOB"]


def test_commands_of_the_documents():
  """Each that calls a script here is one that the script takes."""
  text = (ROOT / "docs/scaling.md").read_text()
  blocks = re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
  lines = "".join(blocks).replace("\\\n", "").splitlines()
  seen = set()
  for line in lines:
    names = re.findall(r"tools/launch/[\w.]+", line)
    if re.match(r"(sbatch .*)?tools/launch/", line):
      words = shlex.split(line)
      command = words[words.index(names[0]) + 1 :]
      done = subprocess.run(
        ["bash", ROOT / names[0], "--dry_run", *command], capture_output=True
      )
      assert done.returncode == 0, done.stderr
      seen.add(names[0])
    for name in names:
      assert (ROOT / name).exists()
  scripts = ("restart", "slurm")
  assert seen == {f"tools/launch/{name}.sh" for name in scripts}
