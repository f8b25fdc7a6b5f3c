"""Invented results for tests of tables and reports."""

import math

from cops_jax.evaluation import results
from cops_jax.metrics import METRICS

NAN = math.nan


def row(*values):
  return dict(zip(METRICS, values, strict=True))


def make_result(*rows):
  image = results.ImageResult("made", "c0", "c0/a.png", 1, 0.75)
  return results.DatasetResult(
    categories={
      f"c{index}": results.CategoryResult(
        metrics,
        undefined={
          name: "no masks" for name, value in metrics.items() if value != value
        },
        image_threshold=0.5,
        curves={"image_roc": ([0.0, 1.0], [0.0, 1.0])},
        num_masks=1 - index,
      )
      for index, metrics in enumerate(rows)
    },
    images=[image],
    pictures=[results.Picture("best", image, {"image": "/9g="}, 0.0, 1.0)],
    skipped={"c0/b.png": "truncated"},
    identity="1.0.0",
    data_sha256="cc" * 32,
    seconds=2.5,
    peak_memory_bytes=10,
  )


FIRST = row(0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
SECOND = row(0.7, 0.6, 0.5, *[NAN] * 5)
NOTHING = row(*[NAN] * len(METRICS))
