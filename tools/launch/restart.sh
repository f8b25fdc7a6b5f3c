#!/bin/bash
# Runs a command again for as long as it ends with exit code 75, which says that
# the same command resumes from what is saved, with 134, because JAX aborted it after
# another process was lost, or with 137, because it was killed.
#
#   tools/launch/restart.sh python train.py --config=visa --workdir=runs/visa
#
# SIGTERM and Ctrl-C reach the command, which saves, and end this script too. Any
# other exit code ends it.
set -u

max_restarts=50
if (( $# == 0 )); then
  echo "no command is given. usage: restart.sh COMMAND..." >&2
  exit 2
fi

is_stopped=
# The shell starts what runs in the background without Ctrl-C.
trap 'is_stopped=1; kill -TERM $(jobs -p) 2> /dev/null' TERM INT
for (( restart = 0; ; restart++ )); do
  "$@" &
  wait $!
  status=$?
  # A signal ends `wait` before the command has saved.
  while kill -0 $! 2> /dev/null; do
    wait $!
    status=$?
  done
  (( status == 75 || status == 134 || status == 137 )) && [[ ! $is_stopped ]] || exit $status
  if (( restart == max_restarts )); then
    echo "not started again after $max_restarts times" >&2
    exit $status
  fi
done
