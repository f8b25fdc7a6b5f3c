"""How long a user waits: imports, and commands from start to end.

  python -m benchmarks.startup

With the demo's model. The first start compiles, the second finds the compiled
programs in the cache, which is a folder of the benchmark's own.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np
from PIL import Image

from benchmarks.timing import Row, row

_ROOT = pathlib.Path(__file__).parents[1]


def rows(is_quick: bool) -> Iterator[Row]:
  """Measures; rows come as they are ready."""
  repeats = 2 if is_quick else 5
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    environment = {
      **os.environ,
      "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
    }

    def run(*arguments):
      start = time.perf_counter()
      subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=_ROOT,
        env=environment,
        check=True,
        capture_output=True,
      )
      return time.perf_counter() - start

    run("-c", "import cops_jax.detector")  # Files are read from disk once.
    for module in ("jax", "cops_jax.detector"):
      seconds = [run("-c", f"import {module}") for _ in range(repeats)]
      yield row(f"import {module}", np.array(seconds))
    run(
      *("train.py", "--config=configs/demo.py", f"--workdir={folder}/run"),
      *("--config.train.num_epochs=0", f"--config.data_dir={folder}/data"),
    )
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    Image.fromarray(image).save(folder / "image.png")
    predict = (
      *("-m", "cops_jax", "predict", folder / "image.png"),
      *(f"--workdir={folder}/run", f"--out={folder}/out"),
    )
    first = run(*predict)
    seconds = np.array([run(*predict) for _ in range(repeats)])
    yield row(
      "predict on one image, demo's model",
      seconds,
      f"the first start, which compiles, takes {first:.1f} s,"
      f" {first / np.median(seconds):.1f} times as long",
    )


if __name__ == "__main__":
  from benchmarks.table import run

  run({"startup": rows})
