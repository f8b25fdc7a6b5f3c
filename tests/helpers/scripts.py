"""Runs train.py, eval.py and commands as a user does."""

import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def environment(num_devices=8, **more):
  """For programs started here; transformers need not look for torch.

  XLA's flags are the tests' own but for the number of devices.
  """
  flags = re.sub(
    r"(device_count)=\d+", rf"\1={num_devices}", os.environ["XLA_FLAGS"]
  )
  return {**os.environ, "USE_TORCH": "0", "XLA_FLAGS": flags, **more}


def start(script, *arguments):
  return subprocess.Popen(
    [sys.executable, script, *map(str, arguments)],
    cwd=ROOT,
    env=environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def run(script, *arguments, timeout=300):
  process = start(script, *arguments)
  out, err = process.communicate(timeout=timeout)
  return process.returncode, out, err
