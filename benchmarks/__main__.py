"""How fast it is here: one table, with ratios measured in one run.

  python -m benchmarks
  python -m benchmarks --quick    (small, with the demo's model)

Let nothing run beside it. `python -m benchmarks.metrics` measures more of them.
"""

from benchmarks import (
  evaluation,
  input_pipeline,
  metrics,
  saving,
  startup,
  training,
)
from benchmarks.table import run

if __name__ == "__main__":
  run(
    {
      "startup": startup.rows,
      "evaluation": evaluation.rows,
      "training": training.rows,
      "saving": saving.rows,
      "input pipeline": input_pipeline.rows,
      "metrics": metrics.rows,
    }
  )
