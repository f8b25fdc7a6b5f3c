"""The notebooks run, from the first cell to the last."""

import json

import matplotlib.pyplot as plt
import pytest

from helpers.images import write_folder
from helpers.scripts import ROOT, capture


def read(name):
  """Returns the code cells of a notebook."""
  cells = json.loads((ROOT / "notebooks" / name).read_text())["cells"]
  return [cell for cell in cells if cell["cell_type"] == "code"]


def execute(name, monkeypatch, change=lambda names: None):
  """Runs all cells and returns their printed text and figures.

  `change` is called with the variables after each cell.
  """
  figures, names = [], {}
  monkeypatch.setattr(plt, "show", lambda: figures.append(plt.gcf()))
  with capture() as (out, _):
    for cell in read(name):
      exec("".join(cell["source"]), names)
      change(names)
  plt.close("all")
  names["temporary"].cleanup()
  return out.getvalue(), figures


def test_the_photographs_notebook_runs(monkeypatch):
  out, figures = execute("photographs.ipynb", monkeypatch)
  assert "hole.png" in out and "reached by 0 of 60 normal images" in out
  assert len(figures) == 1


def test_the_prompts_notebook_runs(config, tmp_path, monkeypatch):
  config.train.dataset = write_folder(tmp_path / "parts", 6)
  config.evaluation.datasets = (config.train.dataset,)
  changed = {}

  def shrink(names):
    """Replaces the configs of the study by tiny ones."""
    for name, fields in names.get("variants", {}).items():
      if name in names.get("configs", {}) and name not in changed:
        changed[name] = config.copy_and_resolve_references()
        changed[name].update_from_flattened_dict(fields)
        names["configs"][name] = changed[name]

  out, figures = execute("prompts.ipynb", monkeypatch, shrink)
  table = out.splitlines()[-3:]
  names = ["CoPS", "no prototypes", "untrained"]
  assert [line[:16].strip() for line in table] == names
  assert all(0 <= float(cell) <= 100 for cell in table[0][16:].split())
  assert len(figures) == 1


@pytest.mark.parametrize("name", ("photographs.ipynb", "prompts.ipynb"))
def test_notebooks_contain_their_pictures_and_tables(name):
  outputs = [output for cell in read(name) for output in cell["outputs"]]
  kinds = {output["output_type"] for output in outputs}
  assert {"stream", "display_data"} <= kinds and "error" not in kinds
