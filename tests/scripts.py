"""Runs train.py, eval.py and commands as a user does."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent


def start(script, *arguments):
  return subprocess.Popen(
    [sys.executable, script, *map(str, arguments)],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def run(script, *arguments):
  process = start(script, *arguments)
  out, err = process.communicate(timeout=300)
  return process.returncode, out, err
