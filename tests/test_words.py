"""Docstrings are sentences, and pages, messages and code share their words."""

import ast
import re

import pytest

from helpers.scripts import ROOT

FOLDERS = ("benchmarks", "configs", "cops_jax", "tests", "tools")
SOURCES = [path for name in FOLDERS for path in (ROOT / name).rglob("*.py")]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
# A first line that begins so has no verb, or hides its noun.
NO_SENTENCE = re.compile(r"(Of|What|That|To be|Whether|Where|Whose|How)\b")
# A description that begins so needs the argument's name to be read with it.
DANGLING = re.compile(r"(of|that|whether|what|which|to be|whose|as|where)\b")
# Superseded words, with those of docs/glossary.md.
SUPERSEDED = {
  "work directory": "run directory",
  "region threshold": "pixel threshold",
}


@pytest.fixture(scope="module")
def docstrings():
  """Returns the place and the text of each docstring."""
  found = []
  for path in SOURCES:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
      if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
        name, text = getattr(node, "name", ""), ast.get_docstring(node)
        found += [(f"{path.relative_to(ROOT)} {name}", text)] if text else []
  return found


def test_docstrings_begin_with_a_sentence(docstrings):
  assert len(docstrings) > 1000
  assert not [at for at, text in docstrings if NO_SENTENCE.match(text)]


def test_descriptions_of_arguments_stand_alone(docstrings):
  wrong = []
  for at, text in docstrings:
    sections = re.findall(r"^(?:Args|Attributes):\n((?:  .*\n?)+)", text, re.M)
    for line in "\n".join(sections).splitlines():
      description = re.match(r"  [*\w, ]+: (.*)", line)
      if description and DANGLING.match(description[1]):
        wrong.append(f"{at}: {line.strip()}")
  assert not wrong


@pytest.mark.parametrize("word", SUPERSEDED)
def test_superseded_words_are_gone(word):
  pattern = re.compile(r"\s+".join(word.split()), re.I)
  paths = {*SOURCES, *PAGES} - {ROOT / "tests" / "test_words.py"}
  wrong = [path for path in paths if pattern.search(path.read_text("utf-8"))]
  assert not wrong, f"say {SUPERSEDED[word]!r}"
