"""Versions, licences, extras, dependencies and links that must agree."""

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


def test_files_agree_on_version_and_licence():
  citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
  assert citation["version"] == cops_jax.__version__
  assert {"cff-version", "message", "title", "authors"} <= citation.keys()
  assert citation["license"] == PROJECT["license"] == "Apache-2.0"
  changes = (ROOT / "CHANGELOG.md").read_text()
  assert re.search(r"^## (\S+?),? ", changes, re.M)[1] == cops_jax.__version__
  licence = (ROOT / "LICENSE").read_text()
  assert licence.split()[:4] == ["Apache", "License", "Version", "2.0,"]
  assert PROJECT["license-files"] == ["LICENSE"]


def test_messages_and_pages_name_existing_extras():
  extras = set(PROJECT["optional-dependencies"])
  pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
  sources = sorted((ROOT / "cops_jax").rglob("*.py"))
  for path in (*pages, *sources):
    for name in re.findall(r"cops-jax\[([\w-]+)\]", path.read_text()):
      assert name in extras, f"{path}: no extra is called {name!r}"


def test_imported_packages_are_dependencies():
  """Imports outside the dependencies come from jax, a dependency or extras."""

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
    *("jaxlib", "requests"),  # Dependencies of jax and huggingface_hub.
    *("fsspec", "gcsfs", "jax2onnx", "onnx_ir", "onnxruntime", "pillow_heif"),
  }


@pytest.mark.parametrize("name", ("README.md", "CONTRIBUTING.md"))
def test_links_work_outside_the_repository(name):
  """The package index shows the README, but not the files that it links to.

  Instead of a picture it shows its alternative text.
  """
  text = (ROOT / name).read_text()
  links = re.findall(r"(?<!!)\[[^]]*\]\(([^)]+)\)", text)
  assert all(link.startswith(("https://", "#")) for link in links), links
  for words, path in re.findall(r"!\[([^]]*)\]\(([^)]+)\)", text):
    assert len(words) > 20 and (ROOT / path).exists()


def test_the_makefile_names_existing_tests():
  names = re.findall(
    r"tests/[\w/]+\.py(?:::\w+)?", (ROOT / "Makefile").read_text()
  )
  assert len(names) > 5
  for path, _, test in (name.partition("::") for name in names):
    assert f"def {test}" in (ROOT / path).read_text(), f"{path}::{test}"
