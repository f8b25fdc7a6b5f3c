"""Imports run one way."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# From the bottom up; a module imports from its own layer and those below.
# Within a layer, packages and modules do not import each other in circles.
LAYERS = (
  ("", "typing", "errors", "progress", "tables"),
  ("paths", "files"),
  ("clip", "losses", "scoring", "metrics", "images", "datasets"),
  ("methods",),
  ("fields", "config", "runs", "runtime"),
  ("inputs", "weights"),
  ("evaluation",),
  ("training",),
  ("thresholds", "detector", "reporting", "export"),
  ("predict", "calibrate", "publish", "demo"),
  ("commands", "__main__"),
)
# What is still to be put right, as (module, part that it imports).
EXCEPTIONS = set()

LAYER_OF = {name: layer for layer, row in enumerate(LAYERS) for name in row}
MODULES = {
  ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(
    ".__init__"
  ): path
  for path in sorted((ROOT / "cops_jax").rglob("*.py"))
}


def part_of(module):
  """The name in `LAYERS`: what follows "cops_jax."."""
  return (module.split(".") + [""])[1]


def imports(path):
  """Modules of this package that a file imports, anywhere in it.

  But for what it does as a program, as `python -m` calls it: that is a command.
  """
  tree = ast.parse(path.read_text("utf-8"))
  tree.body = [node for node in tree.body if not is_program(node)]
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f"{path}: a relative import"
      names = [f"{node.module}.{alias.name}" for alias in node.names]
      names = [name if name in MODULES else node.module for name in names]
    else:
      continue
    yield from (name for name in names if name.split(".")[0] == "cops_jax")


def is_program(node):
  """Whether a statement is `if __name__ == "__main__"`."""
  return isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)


def layer_of(module):
  if module.endswith(".__main__"):
    return len(LAYERS) - 1
  return LAYER_OF[part_of(module)]


def edges():
  for module, path in MODULES.items():
    for name in imports(path):
      yield module, name


def test_one_module_imports_transformers():
  found = [
    name
    for name, path in MODULES.items()
    if re.search(r"^\s*(from|import) transformers\b", path.read_text(), re.M)
  ]
  assert found == ["cops_jax.clip.transformers_clip"]


def test_every_module_has_a_layer():
  parts = {part_of(module) for module in MODULES}
  assert parts == {*LAYER_OF}


def test_no_import_goes_up():
  wrong = [
    f"{module} imports {name}"
    for module, name in edges()
    if part_of(module) != part_of(name)
    and (part_of(module), part_of(name)) not in EXCEPTIONS
    and layer_of(name) > layer_of(module)
  ]
  assert not wrong, "\n".join(wrong)


def test_nothing_imports_commands():
  wrong = [
    f"{module} imports {name}"
    for module, name in edges()
    if name.endswith(".__main__")
  ]
  assert not wrong, "\n".join(wrong)


def test_exceptions_are_still_needed():
  found = {(part_of(module), part_of(name)) for module, name in edges()}
  assert found >= EXCEPTIONS


def test_no_circles():
  above = {}
  for module, name in edges():
    if module.endswith(".__main__"):
      continue
    pair = part_of(module), part_of(name)
    if pair[0] != pair[1] and pair not in EXCEPTIONS:
      above.setdefault(pair[0], set()).add(pair[1])

  def follow(part, path):
    if part in path:
      pytest.fail(" imports ".join((*path[path.index(part) :], part)))
    for other in sorted(above.get(part, ())):
      follow(other, (*path, part))

  for part in LAYER_OF:
    follow(part, ())
