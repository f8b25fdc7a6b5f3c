"""Duration of imports and of a whole command.

Uses the demo's model and an empty compilation cache. The first start compiles;
later starts find the compiled programs in the cache.
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

from benchmarks.common import Row, measure

_ROOT = pathlib.Path(__file__).parents[1]


def rows(is_quick: bool) -> Iterator[Row]:
  """Yields rows as they are measured."""
  repeats = 2 if is_quick else 5
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}

    def run(*arguments):
      subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=_ROOT,
        env=os.environ | cache,
        check=True,
        capture_output=True,
      )

    for module in ("jax", "cops_jax.detector"):
      call = ("-c", f"import {module}")
      seconds = measure(lambda call=call: run(*call), repeats)
      yield Row(f"import {module}", seconds)
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
    start = time.perf_counter()
    run(*predict)
    first = time.perf_counter() - start
    seconds = measure(lambda: run(*predict), repeats)
    yield Row(
      "cops predict, 1 image, demo's model",
      seconds,
      f"the first start, which compiles, takes {first:.1f} s,"
      f" {first / np.median(seconds):.1f} times as long",
    )
