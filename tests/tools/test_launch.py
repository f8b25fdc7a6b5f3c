"""Launch scripts, with stand-ins for what they call."""

import os
import subprocess

import pytest

from helpers.scripts import ROOT

STAND_IN = """#!/bin/sh
echo "$(basename "$0") $*" >> "$CALLS"
[ "$(basename "$0")" != srun ] || exit "$STATUS"
"""


@pytest.fixture
def launch(tmp_path):
  """Runs the Slurm script; gives exit status, calls, output and errors."""
  for name in ("srun", "scontrol"):
    (tmp_path / name).write_text(STAND_IN)
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
      ["bash", ROOT / "tools/launch/slurm.sh", *arguments],
      env=environment,
      capture_output=True,
      text=True,
    )
    lines = calls.read_text().splitlines()
    return done.returncode, lines, done.stdout, done.stderr

  return call


RUN = "srun --kill-on-bad-exit=0 python train.py --config=visa --workdir=a b"


@pytest.mark.parametrize("status", (0, 1, 75, 137))
def test_the_job_goes_on_where_it_can(launch, status):
  code, calls, _, err = launch("--config=visa", "--workdir=a b", status=status)
  assert code == status and not err
  again = ["scontrol requeue 7"] if status in (75, 137) else []
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
  lines = (ROOT / "tools/launch/slurm.sh").read_text().splitlines()
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
