"""What the core does without."""

import pathlib
import subprocess
import sys

ABSENT = (
  "PIL",
  "array_record",
  "clu",
  "grain",
  "jaxtyping",
  "ml_collections",
  "tensorflow",
  "tensorflow_datasets",
  "torch",
)

SCRIPT = f"""
import importlib.machinery
import sys


class Finder(importlib.machinery.PathFinder):
  # transformers imports torch and PIL where it finds them: hide them well.
  @classmethod
  def find_spec(cls, name, path=None, target=None):
    if name.split(".")[0] in {ABSENT!r}:
      return None
    return super().find_spec(name, path, target)


sys.meta_path = [
  Finder if finder is importlib.machinery.PathFinder else finder
  for finder in sys.meta_path
]
import cops_jax.datasets
import cops_jax.evaluation
import cops_jax.losses
import cops_jax.models.cops
import cops_jax.training
"""


def test_core_imports_without_the_rest():
  """As on a machine where the input pipeline's packages are not installed."""
  root = pathlib.Path(__file__).parent.parent
  subprocess.run([sys.executable, "-c", SCRIPT], cwd=root, check=True)
  refused = f"{SCRIPT}\nimport grain"
  result = subprocess.run(
    [sys.executable, "-c", refused], cwd=root, capture_output=True, text=True
  )
  assert "No module named 'grain'" in result.stderr
