"""What the core does without."""

import os
import pathlib
import subprocess
import sys

from helpers.original_layouts import write_tree

ABSENT = (
  "PIL",
  "array_record",
  "clu",
  "grain",
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
import cops_jax.evaluation.evaluator
import cops_jax.evaluation.step
import cops_jax.inputs.pipeline
import cops_jax.losses
import cops_jax.methods.cops
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


def test_the_detector_is_imported_without_the_model():
  """And with it without torch, in a command: both take seconds."""
  script = """
import sys
import cops_jax.detector
names = {"transformers", "flax", "orbax", "scipy", "torch"}
assert not names & sys.modules.keys(), names & sys.modules.keys()
from cops_jax.commands import command_line

@command_line
def main(_):
  import cops_jax.weights

main()
assert "transformers" in sys.modules and "torch" not in sys.modules
"""
  root = pathlib.Path(__file__).parent.parent
  subprocess.run([sys.executable, "-c", script], cwd=root, check=True)


USE_DATA_SETS = """
import sys
from cops_jax import datasets
from cops_jax.inputs import pipeline

if __name__ == "__main__":
  examples = datasets.load("kvasir", "test", sys.argv[1], sys.argv[2])
  options = pipeline.BatchOptions(
    image_size=8, patch_size=4, batch_size=2, num_workers=1
  )
  batches = pipeline.iterate_batches(examples, options, range(2))
  print(sum(batch["padding_mask"].sum() for batch in batches), "images")
"""


def test_data_sets_need_neither_tensorflow_nor_torch(tmp_path):
  """From original files to batches, in worker processes too."""
  forbidden = tmp_path / "forbidden"
  forbidden.mkdir()
  for name in ("tensorflow", "torch"):
    (forbidden / f"{name}.py").write_text(f"raise ImportError('used {name}')")
  write_tree("kvasir", tmp_path)
  script = tmp_path / "use_data_sets.py"
  script.write_text(USE_DATA_SETS)
  root = pathlib.Path(__file__).parent.parent
  path = os.pathsep.join([str(forbidden), str(root)])
  result = subprocess.run(
    [sys.executable, script, tmp_path / "prepared", tmp_path],
    env={**os.environ, "PYTHONPATH": path},
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr
  assert result.stdout == "3 images\n"
  assert "used " not in result.stderr
