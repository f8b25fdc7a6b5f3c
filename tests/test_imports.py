"""The direction of imports between the package's layers."""

import ast
import graphlib
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]

# Layers from the bottom up. A module imports only from its own layer and lower
# ones. Within a layer, imports have no cycles.
LAYERS = (
  ("", "typing", "errors", "progress", "tables"),
  ("paths", "files"),
  ("backbones", "losses", "scoring", "metrics", "images", "datasets"),
  ("methods",),
  ("field_types", "fields", "config", "runs", "runtime"),
  ("inputs", "weights"),
  ("evaluation",),
  ("training",),
  ("thresholds", "detection", "detector", "reporting", "export"),
  ("predict", "calibrate", "publish", "demo"),
  ("commands",),
  ("__main__",),
)
LAYER_OF = {name: layer for layer, row in enumerate(LAYERS) for name in row}
MODULES = {
  ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(
    ".__init__"
  ): path
  for path in sorted((ROOT / "cops_jax").rglob("*.py"))
}


def part_of(module):
  """Returns a module's name in `LAYERS`, the part after "cops_jax."."""
  return (module.split(".") + [""])[1]


def imports(path):
  """Yields the modules of this package that a file imports, at any level."""
  for node in ast.walk(ast.parse(path.read_text("utf-8"))):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f"{path}: a relative import"
      names = [f"{node.module}.{alias.name}" for alias in node.names]
      names = [name if name in MODULES else node.module for name in names]
    else:
      continue
    yield from (name for name in names if name.split(".")[0] == "cops_jax")


def test_imports_follow_the_layers_without_cycles():
  assert {part_of(module) for module in MODULES} == {*LAYER_OF}
  below = {}
  for module, path in MODULES.items():
    for name in imports(path):
      part, other = part_of(module), part_of(name)
      assert LAYER_OF[other] <= LAYER_OF[part], f"{module} imports {name}"
      if part != other:
        below.setdefault(part, set()).add(other)
  graphlib.TopologicalSorter(below).prepare()  # Raises an error on a cycle.


def test_only_one_module_imports_transformers():
  found = [
    name
    for name, path in MODULES.items()
    if re.search(r"^\s*(from|import) transformers\b", path.read_text(), re.M)
  ]
  assert found == ["cops_jax.backbones.transformers_clip"]
