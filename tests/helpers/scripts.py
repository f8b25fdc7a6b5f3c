"""Runs train.py, eval.py and commands as a user does."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def environment(**more):
  """For programs started here; transformers need not look for torch."""
  return {**os.environ, "USE_TORCH": "0", **more}


def start(script, *arguments):
  return subprocess.Popen(
    [sys.executable, script, *map(str, arguments)],
    cwd=ROOT,
    env=environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def run(script, *arguments):
  process = start(script, *arguments)
  out, err = process.communicate(timeout=300)
  return process.returncode, out, err
