"""tpu.sh with a stand-in for gcloud, and what it runs on each host."""

import os
import shlex
import shutil
import signal
import subprocess
import time

import pytest

from helpers.scripts import ROOT

FOLDER = ROOT / "tools/launch"

# A command's answers are the lines of the file of its kind, one for each call.
CLOUD = r"""#!/bin/bash
name=$(basename "$0")
printf '%s\037' "$name" "$@" >> "$CALLS"
printf '\036' >> "$CALLS"
case "$name $*" in
  *" queued-resources describe "*) kind=state ;;
  *" tpu-vm describe "*) kind=node ;;
  *" queued-resources "*) kind=$4 ;;
  *" scp "*) kind=scp ;;
  *"background.sh watch"*) kind=watch ;;
  *"background.sh start"*) kind=start ;;
  *) kind=other ;;
esac
file=$ANSWERS/$kind
[[ -s $file ]] || exit 0
answer=$(head -n 1 "$file")
sed -i 1d "$file"
case $answer in
  [0-9]*) exit "$answer" ;;
  none) exit 1 ;;
  *) echo "$answer" ;;
esac
"""


def make_stand_ins(folder, *names):
  folder.mkdir(parents=True, exist_ok=True)
  for name in names:
    (folder / name).write_text(CLOUD)
    (folder / name).chmod(0o755)
  return folder


def read_calls(path):
  return [
    call.split("\x1f")[:-1] for call in path.read_text().split("\x1e")[:-1]
  ]


@pytest.fixture
def tpu(tmp_path):
  """Runs tpu.sh; gives exit status, calls, output and errors."""
  copy = tmp_path / "project/tools/launch/tpu.sh"
  copy.parent.mkdir(parents=True)
  # Three times prove as much as fifty.
  text = (FOLDER / "tpu.sh").read_text()
  assert text.count("max_rounds=50") == 1
  copy.write_text(text.replace("max_rounds=50", "max_rounds=3"))
  path = make_stand_ins(tmp_path / "bin", "gcloud", "git", "sleep", "mkdir")

  def call(*arguments, **answers):
    (tmp_path / "calls").write_text("")
    shutil.rmtree(tmp_path / "answers", ignore_errors=True)
    (tmp_path / "answers").mkdir()
    for kind, lines in answers.items():
      (tmp_path / "answers" / kind).write_text(
        "".join(f"{line}\n" for line in lines.split())
      )
    environment = {
      "PATH": f"{path}:{os.environ['PATH']}",
      "CALLS": str(tmp_path / "calls"),
      "ANSWERS": str(tmp_path / "answers"),
    }
    done = subprocess.run(
      ["bash", copy, *arguments],
      env=environment,
      capture_output=True,
      text=True,
      timeout=60,
    )
    calls = read_calls(tmp_path / "calls")
    return done.returncode, calls, done.stdout, done.stderr

  return call


SLICE = ("--name=cops", "--zone=z-a", "--type=v5litepod-16")
TRAIN = ("--", "train.py", "--config=visa", "--workdir=gs://b/a run")
ON = "gcloud compute tpus tpu-vm ssh cops --zone=z-a --quiet".split()
ON_ALL = [*ON, "--worker=all"]
ON_HOST = "cops_jax/tools/launch/background.sh"
START = (
  f"{ON_HOST} start python train.py --config=visa '--workdir=gs://b/a run'"
)


def resource(verb, *flags):
  line = f"gcloud compute tpus queued-resources {verb} cops --zone=z-a"
  return [*line.split(), *flags]


CREATE = resource(
  "create",
  "--node-id=cops",
  "--accelerator-type=v5litepod-16",
  "--runtime-version=v2-alpha-tpuv5-lite",
)
STATE = resource("describe", "--format=value(state.state)")
NODE = "gcloud compute tpus tpu-vm describe cops --zone=z-a".split()
NODE.append("--format=value(state)")
WAIT = ["sleep", "60"]
RUN_ALL = [*ON_ALL, f"--command={START} --distributed"]
WATCH = [*ON_ALL, f"--command={ON_HOST} watch"]
DELETE = resource("delete", "--force", "--quiet")


def without_install(calls):
  """The calls, with `install` in place of the four of that step."""
  short = []
  while calls:
    if calls[0][0] == "mkdir":
      mkdir, git, scp, ssh = calls[:4]
      archive = f"{mkdir[-1]}/cops.tar.gz"
      root = os.path.dirname(mkdir[-1])
      assert git == [
        "git",
        "-C",
        root,
        "archive",
        f"--output={archive}",
        "HEAD",
      ]
      assert scp == [
        *("gcloud", "compute", "tpus", "tpu-vm", "scp", archive),
        *("cops:cops_jax.tar.gz", "--zone=z-a", "--quiet", "--worker=all"),
      ]
      assert ssh[:-1] == ON_ALL and "uv pip install" in ssh[-1]
      short.append("install")
      calls = calls[4:]
    else:
      short.append(calls[0])
      calls = calls[1:]
  return short


def test_up_goes_through_all_steps(tpu):
  code, calls, _, err = tpu(
    *("up", *SLICE, *TRAIN), state="none none WAITING_FOR_RESOURCES ACTIVE"
  )
  assert code == 0
  assert without_install(calls) == [
    *(STATE, CREATE, WAIT, STATE, WAIT, STATE, WAIT, STATE, NODE),
    *("install", RUN_ALL, WATCH, DELETE),
  ]
  assert err.splitlines() == [
    *("cops: no state", "cops: WAITING_FOR_RESOURCES", "cops: ACTIVE")
  ]


def test_a_dry_run_of_up_prints_what_is_run(tpu):
  arguments = ("up", *SLICE, "--spot", "--", "eval.py", "--workdir=it's a b")
  _, calls, _, _ = tpu(*arguments, state="none ACTIVE")
  code, none, out, _ = tpu("--dry_run", *arguments)
  assert code == 0 and not none
  run = [call for call in calls if call not in (WAIT, NODE)]
  assert run[:3] == [STATE, [*CREATE, "--spot"], STATE]
  assert shlex.split(out) == sum(run[1:], [])


def test_a_slice_that_is_taken_away_is_asked_for_again(tpu):
  code, calls, _, _ = tpu(
    *("up", *SLICE, *TRAIN),
    state="ACTIVE SUSPENDING SUSPENDING SUSPENDED none ACTIVE",
    watch="255 0",
  )
  assert code == 0
  assert without_install(calls) == [
    *(STATE, NODE, "install", RUN_ALL, WATCH),
    *(WAIT, STATE, STATE, WAIT, STATE, DELETE, WAIT, STATE, CREATE, WAIT),
    *(STATE, NODE, "install", RUN_ALL, WATCH, DELETE),
  ]


def test_a_host_that_is_taken_away_is_noticed_first(tpu):
  code, calls, _, _ = tpu(
    *("up", *SLICE, *TRAIN),
    state="ACTIVE ACTIVE ACTIVE none ACTIVE",
    node="READY PREEMPTED PREEMPTED READY",
    watch="1 0",
  )
  assert code == 0
  assert calls.count(CREATE) == 1 and calls.count(RUN_ALL) == 2


@pytest.mark.parametrize("status", (75, 137, 255))
def test_a_run_that_can_go_on_goes_on(tpu, status):
  code, calls, _, _ = tpu(
    *("up", *SLICE, *TRAIN), state="ACTIVE " * 3, watch=f"{status} 0"
  )
  assert code == 0 and calls.count(RUN_ALL) == calls.count(WATCH) == 2
  assert CREATE not in calls and calls.count(DELETE) == 1


def test_no_answer_while_the_connection_is_lost_deletes_nothing(tpu):
  code, calls, _, _ = tpu(
    *("up", *SLICE, *TRAIN), state="ACTIVE none ACTIVE", watch="255 0"
  )
  assert code == 0 and calls[-1] == DELETE and calls.count(DELETE) == 1


def test_an_error_without_an_answer_ends_it_and_deletes_nothing(tpu):
  code, calls, _, _ = tpu(
    *("up", *SLICE, *TRAIN), state="ACTIVE none", watch="1"
  )
  assert code == 1 and calls[-2:] == [WAIT, STATE]


def test_ctrl_c_leaves_the_run(tpu, tmp_path):
  (tmp_path / "bin/sleep").write_text("#!/bin/sh\nkill -INT $PPID\n")
  code, calls, _, err = tpu(
    *("up", *SLICE, *TRAIN), state="ACTIVE", watch="255"
  )
  assert code == 130 and calls[-1] == WATCH
  assert "the run goes on: the same command finds it" in err


def test_an_error_of_the_run_ends_it_and_costs_no_more(tpu):
  code, calls, _, _ = tpu(
    *("up", *SLICE, *TRAIN), state="ACTIVE ACTIVE", watch="1"
  )
  assert code == 1 and calls.count(RUN_ALL) == 1 and calls[-1] == DELETE


def test_a_slice_can_be_kept(tpu):
  for watch in ("0", "1"):
    code, calls, _, err = tpu(
      *("up", *SLICE, "--keep", *TRAIN), state="ACTIVE ACTIVE", watch=watch
    )
    assert code == int(watch) and DELETE not in calls
    assert "cops is kept, and costs until it is deleted" in err


@pytest.mark.parametrize("step", ("scp", "start"))
def test_a_run_that_did_not_start_leaves_the_slice(tpu, step):
  code, calls, _, err = tpu(
    *("up", *SLICE, *TRAIN), state="ACTIVE ACTIVE", **{step: "1"}
  )
  assert code == 1 and "is kept" in err
  assert WATCH not in calls and DELETE not in calls


def test_up_does_not_go_on_for_ever(tpu):
  code, calls, _, err = tpu(
    *("up", *SLICE, *TRAIN), state="ACTIVE " * 9, watch="75 " * 9
  )
  assert code == 75 and calls.count(RUN_ALL) == 4 and calls[-1] == DELETE
  assert "not started again after 3 times" in err
  # Hosts that are not reached may go on.
  code, calls, _, err = tpu(
    *("up", *SLICE, *TRAIN), state="ACTIVE " * 9, watch="255 " * 9
  )
  assert code == 255 and DELETE not in calls and "is kept" in err


def test_a_slice_that_is_not_given(tpu):
  code, calls, _, err = tpu("create", *SLICE, state="none FAILED")
  assert code == 1 and calls == [STATE, CREATE, WAIT, STATE]
  assert "cops was not given" in err
  # One that failed earlier is in the way.
  code, calls, _, _ = tpu("create", *SLICE, state="FAILED none ACTIVE")
  assert code == 0 and calls[:2] == [STATE, DELETE] and CREATE in calls
  # So is one that is taken away before it is used.
  code, calls, _, _ = tpu("create", *SLICE, state="none SUSPENDED none ACTIVE")
  assert code == 0 and calls.count(CREATE) == 2 and calls.count(DELETE) == 1
  code, calls, _, _ = tpu("up", *SLICE, *TRAIN, state="none", create="1")
  assert code == 1 and calls == [STATE, CREATE]


def test_steps_of_their_own(tpu):
  assert tpu("run", *SLICE, *TRAIN)[1] == [RUN_ALL]
  assert tpu("watch", *SLICE)[1] == [WATCH]
  assert tpu("delete", *SLICE)[1] == [DELETE]
  assert without_install(tpu("install", *SLICE)[1]) == ["install"]
  assert tpu("watch", *SLICE, watch="75")[0] == 75
  _, calls, _, _ = tpu("prepare", *SLICE, "--", "visa", "--data_dir=gs://b/d")
  first = [*ON, "--worker=0"]
  prepare = "python -m cops_jax.datasets prepare visa --data_dir=gs://b/d"
  assert calls == [
    [*first, f"--command={ON_HOST} start {prepare}"],
    [*first, f"--command={ON_HOST} watch"],
  ]


@pytest.mark.parametrize(
  "kind, runtime, is_slice",
  (
    ("v5litepod-8", "v2-alpha-tpuv5-lite", False),
    ("v6e-8", "v2-alpha-tpuv6e", False),
    ("v6e-16", "v2-alpha-tpuv6e", True),
    ("v4-8", "tpu-ubuntu2204-base", False),
    ("v4-64", "tpu-ubuntu2204-base", True),
    ("v5p-16", "v2-alpha-tpuv5", True),
  ),
)
def test_kinds_of_hosts(tpu, kind, runtime, is_slice):
  arguments = (*SLICE[:2], f"--type={kind}", *TRAIN)
  _, _, out, _ = tpu("--dry_run", "up", *arguments)
  words = shlex.split(out)
  assert f"--accelerator-type={kind}" in words
  assert f"--runtime-version={runtime}" in words
  assert (f"--command={START} --distributed" in words) == is_slice
  assert (f"--command={START}" in words) != is_slice
  _, _, out, _ = tpu("--dry_run", "up", "--runtime=v9", *arguments)
  assert "--runtime-version=v9" in shlex.split(out)


@pytest.mark.parametrize(
  "arguments, message",
  (
    ((), "the first argument must be a step, not missing."),
    (("start", *SLICE), "the first argument must be a step, not start."),
    (("up", *SLICE[1:], *TRAIN), "--name is missing."),
    (("up", *SLICE[::2], *TRAIN), "--zone is missing."),
    (("delete", *SLICE[:2]), "--type is missing."),
    (("create", *SLICE[:2], "--type=v9-8"), "--type=v9-8 needs --runtime."),
    (("up", *SLICE, "train.py"), "train.py is none of the flags; those of the"),
    (("up", *SLICE), "train.py or eval.py with its flags must come after --."),
    (("run", *SLICE, "--", "rm"), "train.py or eval.py with its flags must"),
    (("prepare", *SLICE, "--"), "names of data sets must come after --."),
    (("delete", *SLICE, *TRAIN), "delete takes nothing after --."),
  ),
)
def test_bad_input_runs_nothing(tpu, arguments, message):
  code, calls, out, err = tpu(*arguments)
  first, usage = err.splitlines()
  assert code == 2 and not calls and not out
  assert first.startswith(message) and usage.startswith("usage: tpu.sh ")


def on_host(tmp_path, command, *names):
  """Runs what a host is told to, in a home of its own."""
  path = make_stand_ins(tmp_path / "host_bin", *names)
  calls = tmp_path / "host_calls"
  calls.write_text("")
  environment = {
    "PATH": f"{path}:{os.environ['PATH']}",
    "CALLS": str(calls),
    "ANSWERS": str(tmp_path / "none"),
  }
  done = subprocess.run(
    ["bash", "-c", command.removeprefix("--command=")],
    cwd=tmp_path,
    env=environment,
    capture_output=True,
    text=True,
  )
  return done.returncode, read_calls(calls), done.stdout


def test_what_hosts_are_told_to_install(tpu, tmp_path):
  command = tpu("install", *SLICE)[1][-1][-1]
  (tmp_path / "constraints.txt").write_text("")
  subprocess.run(
    ["tar", "-czf", "cops_jax.tar.gz", "constraints.txt"],
    cwd=tmp_path,
    check=True,
  )
  code, calls, _ = on_host(tmp_path, command, "python3")
  assert code == 0 and (tmp_path / "cops_jax/constraints.txt").exists()
  assert [call[:4] for call in calls] == [
    ["python3", "-m", "pip", "install"],
    ["python3", "-m", "uv", "venv"],
    ["python3", "-m", "uv", "pip"],
  ]
  packages = ["-c", "constraints.txt", "-e", ".[gcs]", "jax[tpu]"]
  assert calls[2][-5:] == packages
  # Not beneath a command that runs.
  make_stand_ins(tmp_path / "cops_jax/tools/launch", "background.sh")
  code, calls, out = on_host(tmp_path, command, "python3")
  assert code == 0 and out == "a command runs: nothing is installed\n"
  assert [call[0] for call in calls] == ["background.sh"]


def test_arguments_arrive_as_they_were_given(tpu, tmp_path):
  odd = ("--a=x y", "--b='\"$HOME`*", "--c=('a','b')", "", "--d=1\n2\\", "é")
  command = tpu("run", *SLICE, "--", "eval.py", *odd)[1][0][-1]
  make_stand_ins(tmp_path / "cops_jax/tools/launch", "background.sh")
  _, calls, _ = on_host(tmp_path, command)
  assert calls == [
    ["background.sh", "start", "python", "eval.py", *odd, "--distributed"]
  ]


@pytest.fixture
def host(tmp_path):
  """Runs background.sh in a project's folder of its own."""
  copy = tmp_path / "tools/launch/background.sh"
  copy.parent.mkdir(parents=True)
  shutil.copy(FOLDER / "background.sh", copy)

  def call(*arguments):
    done = subprocess.run(
      ["bash", copy, *arguments], capture_output=True, text=True, timeout=30
    )
    return done.returncode, done.stdout, done.stderr

  return call


def test_a_command_in_the_background(host, tmp_path):
  assert host("watch") == (1, "", "no command was started here\n")
  assert host("busy")[0] == 1
  go = f"until [[ -e {tmp_path}/go ]]; do sleep 0.05; done; echo 'a  b'; exit 3"
  command = ("bash", "-c", go)
  assert host("start", *command) == (0, "", "")
  assert host("busy")[0] == 0
  # Once more, as after a connection that was lost; and another one.
  assert host("start", *command) == (0, "", "")
  code, _, err = host("start", "true")
  assert code == 1 and err.startswith(
    "another command runs here: bash -c until"
  )
  (tmp_path / "go").touch()
  assert host("watch") == (3, "a  b\n", "")
  assert host("busy")[0] == 1
  assert host("watch")[:2] == (3, "a  b\n")
  assert host("start", "true")[0] == 0 and host("watch")[:2] == (0, "")


def test_a_command_that_ended_with_its_host_can_go_on(host, tmp_path):
  pids = tmp_path / "pids"
  host("start", "true")
  assert host("watch")[0] == 0
  host("start", "bash", "-c", f"echo $PPID $$ > {pids}; exec sleep 60")
  while not pids.exists() or not pids.read_text():
    time.sleep(0.02)
  for pid in pids.read_text().split():
    os.kill(int(pid), signal.SIGKILL)
  assert host("watch")[0] == 75


def test_background_knows_its_words(host):
  code, _, err = host("stop")
  assert code == 2 and err.startswith("usage: background.sh start")
  assert host()[0] == 2
