#!/bin/bash
# A command that goes on when the connection to its host is lost. tpu.sh calls
# this on each host, in the copy of the project there.
#
#   background.sh start COMMAND...  # by the environment in .venv
#   background.sh watch             # shows its output; ends with its exit code
#   background.sh busy              # whether a command runs
#
# A command that ended with its host has left no exit code: 75 is given, the
# same command goes on from what is saved.
set -u
cd "$(dirname "$0")/../.." || exit 1

folder=runs/background
mkdir -p "$folder"
step=${1:-}
shift

case $step in
  start)
    exec 9>> "$folder/lock"
    if ! flock --wait 0.3 9; then
      # What connects again after a loss starts the same command twice.
      [[ $(< "$folder/command") == "$*" ]] && exit
      echo "another command runs here: $(< "$folder/command")" >&2
      exit 1
    fi
    echo "$*" > "$folder/command"
    rm -f "$folder/status"
    # The command holds the lock too, by the open file that it inherits.
    # shellcheck disable=SC2016
    PATH=$PWD/.venv/bin:$PATH setsid bash -c \
      '"${@:2}"; echo $? > "$1"' bash "$folder/status" "$@" \
      > "$folder/log" 2>&1 < /dev/null &
    ;;
  watch)
    if [[ ! -e $folder/log ]]; then
      echo "no command was started here" >&2
      exit 1
    fi
    flock --shared "$folder/lock" true &
    tail --lines=20 --follow --sleep-interval=0.2 --pid=$! "$folder/log"
    exit "$(cat "$folder/status" 2> /dev/null || echo 75)"
    ;;
  busy)
    ! flock --shared --nonblock "$folder/lock" true
    ;;
  *)
    echo "usage: background.sh start COMMAND... | watch | busy" >&2
    exit 2
    ;;
esac
