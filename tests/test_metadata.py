"""The statements of the package and its files about themselves agree."""

import ast
import importlib.metadata
import re
import sys
import tomllib

import pytest
import yaml

import cops_jax
from helpers.scripts import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_one_version_and_one_licence():
  citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
  assert citation["version"] == cops_jax.__version__
  assert {"cff-version", "message", "title", "authors"} <= citation.keys()
  assert citation["license"] == PROJECT["license"] == "Apache-2.0"
  changes = (ROOT / "CHANGELOG.md").read_text()
  assert re.search(r"^## (\S+?),? ", changes, re.M)[1] == cops_jax.__version__
  licence = (ROOT / "LICENSE").read_text()
  assert licence.split()[:4] == ["Apache", "License", "Version", "2.0,"]
  assert PROJECT["license-files"] == ["LICENSE"]


def test_hints_name_extras_that_there_are():
  extras = set(PROJECT["optional-dependencies"])
  pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
  sources = sorted((ROOT / "cops_jax").rglob("*.py"))
  for path in (*pages, *sources):
    for name in re.findall(r"cops-jax\[([\w-]+)\]", path.read_text()):
      assert name in extras, f"{path}: no extra is called {name!r}"


def test_what_is_imported_is_installed():
  """`pip install .` brings the page's packages too; the rest are extras'."""

  def normalize(name):
    return re.match(r"[\w.-]+", name)[0].lower().replace("_", "-")

  providers = importlib.metadata.packages_distributions()
  core = {normalize(name) for name in PROJECT["dependencies"]}
  missing = set()
  for path in (ROOT / "cops_jax").rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
      else:
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
      for name in {name.partition(".")[0] for name in names}:
        if not core & {normalize(one) for one in providers.get(name, [])}:
          missing.add(name)
  assert missing - {"cops_jax", *sys.stdlib_module_names} <= {
    *("jaxlib", "requests"),  # Of jax and huggingface_hub.
    *("fsspec", "gcsfs", "jax2onnx", "onnx_ir", "onnxruntime", "pillow_heif"),
  }


@pytest.mark.parametrize("name", ("README.md", "CONTRIBUTING.md"))
def test_links_work_outside_of_the_repository_too(name):
  """The package index shows the README, where a path leads nowhere.

  Of a picture it shows the words.
  """
  text = (ROOT / name).read_text()
  links = re.findall(r"(?<!!)\[[^]]*\]\(([^)]+)\)", text)
  assert all(link.startswith(("https://", "#")) for link in links), links
  for words, path in re.findall(r"!\[([^]]*)\]\(([^)]+)\)", text):
    assert len(words) > 20 and (ROOT / path).exists()


def test_the_makefile_names_tests_that_there_are():
  names = re.findall(
    r"tests/[\w/]+\.py(?:::\w+)?", (ROOT / "Makefile").read_text()
  )
  assert len(names) > 5
  for path, _, test in (name.partition("::") for name in names):
    assert f"def {test}" in (ROOT / path).read_text(), f"{path}::{test}"
