#!/bin/bash
# Runs a command, and restarts it if it ends with one of these exit codes:
#    75: the command saved its state, and the same command resumes
#   134: JAX aborted the command because another process was lost
#   137: the command was killed
#
#   tools/launch/restart.sh python train.py --config=visa --workdir=runs/visa
#
# Any other exit code ends this script. SIGTERM and Ctrl-C are passed on to the
# command, which saves; then both end.
set -u

max_restarts=50
if (( $# == 0 )); then
  echo "no command was given. Run restart.sh COMMAND" >&2
  exit 2
fi

is_stopped=
# The shell makes commands in the background ignore Ctrl-C.
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
    echo "gave up after $max_restarts restarts" >&2
    exit $status
  fi
done
