#!/bin/bash
# One TPU host or a slice of many, as a queued resource of Google Cloud.
#
#   tools/launch/tpu.sh up --name=cops --zone=us-west4-a --type=v5litepod-16 \
#     --spot -- train.py --config=visa --workdir=gs://BUCKET/runs/visa
#
# `up` goes through the steps create, install, run and watch. Where the slice is
# taken away, or the run ends with exit code 75 or is killed, it begins again, and
# the run goes on from what is saved. In the end it deletes the slice, unless
# --keep is given. When it is stopped itself, the run goes on: the same command
# finds it. Each step is also a command of its own, with the same flags:
#
#   create   asks for the slice and waits until it is there
#   install  copies the last commit to every host, with an environment
#   prepare  on the first host: python -m cops_jax.datasets prepare ARGUMENTS
#   run      starts `python ARGUMENTS` on every host; watch shows it to its end
#   delete   gives the slice back
#
# With --dry_run first, the commands are printed and not run.
set -u

max_rounds=50
usage="usage: tpu.sh [--dry_run] up|create|install|prepare|run|watch|delete\
 --name=NAME --zone=ZONE --type=TYPE [--runtime=VERSION] [--spot] [--keep]\
 [-- ARGUMENTS]"
root=$(cd "$(dirname "$0")/../.." && pwd)

fail() {
  printf '%s\n' "$1" "$usage" >&2
  exit 2
}

# Words as a shell reads them, each quoted where it must be.
quoted() {
  local word words=
  for word; do
    if [[ ! $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
      word="'$(printf %s "$word" | sed "s/'/'\\\\''/g")'"
    fi
    words+=" $word"
  done
  printf %s "${words# }"
}

run() {
  if [[ $dry_run ]]; then
    quoted "$@"
    echo
  else
    "$@"
  fi
}

resource() {
  local verb=$1
  shift
  run gcloud compute tpus queued-resources "$verb" "$name" --zone="$zone" "$@"
}

# Runs a shell's command on worker 0, or on all at once.
on() {
  run gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --quiet \
    --worker="$1" --command="$2"
}

on_host=cops_jax/tools/launch/background.sh

ask_state() {
  if [[ $dry_run ]]; then
    resource describe --format='value(state.state)'
    state=ACTIVE
    return
  fi
  state=$(resource describe --format='value(state.state)' 2> /dev/null)
  if [[ $state == ACTIVE ]]; then
    # The resource of a host that was taken away may be active for a while.
    case $(gcloud compute tpus tpu-vm describe "$name" --zone="$zone" \
      --format='value(state)' 2> /dev/null) in
      PREEMPTED | TERMINATED) state=SUSPENDED ;;
    esac
  fi
  if [[ $state != "$shown" ]]; then
    echo "$name: ${state:-no state}" >&2
    shown=$state
  fi
}

ask_for_slice() {
  resource create --node-id="$name" --accelerator-type="$type" \
    --runtime-version="$runtime" ${spot:+--spot}
}

create() {
  local is_asked=
  if [[ $dry_run ]]; then
    ask_for_slice
  fi
  while ask_state; do
    case $state in
      ACTIVE) return ;;
      SUSPENDED)
        delete
        is_asked=
        ;;
      FAILED)
        if [[ $is_asked ]]; then
          echo "$name was not given: gcloud compute tpus queued-resources" \
            "describe $name --zone=$zone says why" >&2
          return 1
        fi
        delete
        ;;
      '')
        if [[ ! $is_asked ]]; then
          ask_for_slice || return
          is_asked=1
        fi
        ;;
    esac
    sleep 60
  done
}

install() {
  # The last commit, without what lies around it.
  local archive=$root/runs/$name.tar.gz
  run mkdir -p "$root/runs" &&
    run git -C "$root" archive --output="$archive" HEAD &&
    run gcloud compute tpus tpu-vm scp "$archive" "$name:cops_jax.tar.gz" \
      --zone="$zone" --quiet --worker=all &&
    # The hosts' own Python is older than 3.11.
    on all "if $on_host busy 2> /dev/null; then
  echo 'a command runs: nothing is installed'
else
  mkdir -p cops_jax && tar -xzf cops_jax.tar.gz -C cops_jax && cd cops_jax &&
  python3 -m pip install --quiet --user uv &&
  python3 -m uv venv --quiet --allow-existing --python=3.12 .venv &&
  python3 -m uv pip install --quiet --python=.venv/bin/python \
-c constraints.txt -e '.[gcs]' 'jax[tpu]'
fi"
}

start() {
  local workers=$1
  shift
  on "$workers" "$on_host start $(quoted "$@")"
}

watch() {
  on "$1" "$on_host watch"
}

prepare() {
  start 0 python -m cops_jax.datasets prepare "$@" && watch 0
}

start_run() {
  case $type in
    # One host has no others to find.
    v5litepod-[148] | v6e-[148] | v4-8 | v5p-8) ;;
    *) set -- "$@" --distributed ;;
  esac
  start all python "$@"
}

delete() {
  resource delete --force --quiet
}

give_back() {
  if [[ $keep ]]; then
    echo "$name is kept, and costs until it is deleted" >&2
  else
    delete
  fi
}

up() {
  local round status is_started
  trap 'echo "the run goes on: the same command finds it, delete ends it" >&2
    exit 130' INT
  for (( round = 0; round <= max_rounds; round++ )); do
    create || return
    is_started=
    install && start_run "$@" && is_started=1 && watch all
    status=$?
    if (( status == 0 )); then
      give_back
      return
    fi
    sleep 60  # What takes hosts away says so a little later.
    ask_state
    case $state:$status in
      # 255 is a connection that was lost.
      ACTIVE:75 | ACTIVE:137 | *:255) ;;
      ACTIVE:*)
        # What was never started is no reason to queue again.
        [[ $is_started ]] || keep=1
        give_back
        return $status
        ;;
      :*) return $status ;;
    esac
  done
  echo "not started again after $max_rounds times" >&2
  # What cannot be reached may go on.
  (( status == 255 )) && keep=1
  give_back
  return $status
}

dry_run=
if [[ ${1:-} == --dry_run ]]; then
  dry_run=1
  shift
fi
step=${1:-}
case $step in
  up | create | install | prepare | run | watch | delete) shift ;;
  *) fail "the first argument must be a step, not ${step:-missing}." ;;
esac

name='' zone='' type='' runtime='' spot='' keep='' shown='?'
while (( $# )); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --spot) spot=1 ;;
    --keep) keep=1 ;;
    --) break ;;
    *) fail "$1 is none of the flags; those of the run come after --." ;;
  esac
  shift
done
for flag in name zone type; do
  [[ ${!flag} ]] || fail "--$flag is missing."
done
if [[ ! $runtime ]]; then
  case $type in
    v4-*) runtime=tpu-ubuntu2204-base ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    *) fail "--type=$type needs --runtime." ;;
  esac
fi
if (( $# )); then
  shift
fi
case $step:${1:-} in
  run:train.py | run:eval.py | up:train.py | up:eval.py | prepare:?*) ;;
  run:* | up:*) fail "train.py or eval.py with its flags must come after --." ;;
  prepare:) fail "names of data sets must come after --." ;;
  *:?*) fail "$step takes nothing after --." ;;
esac

case $step in
  run) start_run "$@" ;;
  watch) watch all ;;
  *) $step "$@" ;;
esac
