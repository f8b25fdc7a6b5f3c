"""How commands end."""

import os
import subprocess
import sys

from cops_jax.weights import DEMO_FOLDER
from helpers.scripts import ROOT, environment


def test_output_that_nobody_reads_ends_a_command_in_silence():
  for flags in ([], ["-u"]):  # Told at the end, and at once.
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as closed:
      result = subprocess.run(
        [
          *(sys.executable, *flags, "-m", "cops_jax.weights", "inspect"),
          DEMO_FOLDER / "model.safetensors",
        ],
        stdout=closed,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=environment(),
        text=True,
      )
    assert (result.returncode, result.stderr) == (1, "")
