"""The notebooks run, from the first cell to the last."""

import nbclient
import nbformat
import pytest

from cops_jax import config as configuration
from helpers.config import make_config
from helpers.images import write_folder
from helpers.scripts import ROOT

# Put after the cell that makes configs: the same study, in seconds.
SMALL = """
for config in configs.values():
  for field, value in {fields}.items():
    config.update_from_flattened_dict({{field: value}})
  config.train.num_epochs = min(config.train.num_epochs, 1)
"""


def read(name):
  return nbformat.read(ROOT / "notebooks" / name, as_version=4)


def execute(notebook, folder):
  """The cells' printed lines."""
  client = nbclient.NotebookClient(
    notebook, timeout=300, resources={"metadata": {"path": str(folder)}}
  )
  client.execute()
  return [
    "".join(o.text for o in cell.outputs if o.get("name") == "stdout")
    for cell in notebook.cells
    if cell.cell_type == "code"
  ]


def test_photographs(tmp_path):
  notebook = read("photographs.ipynb")
  printed = execute(notebook, tmp_path)
  assert any("hole.png" in text for text in printed)
  assert any("reached by 0 of 60 normal images" in text for text in printed)
  assert "image/png" in notebook.cells[-2].outputs[0].data


def test_prompts(clip_folder, data_dir, tmp_path):
  folder = write_folder(tmp_path / "parts", 6)
  # As most tests have it, so that programs are compiled already.
  config = make_config(clip_folder, data_dir)
  config.train.dataset = folder
  config.evaluation.datasets = (folder,)
  values = configuration.flatten(config.to_dict())
  default = configuration.flatten(configuration.recipe("demo").to_dict())
  fields = {
    name: value for name, value in values.items() if value != default[name]
  }
  notebook = read("prompts.ipynb")
  (place,) = [
    number
    for number, cell in enumerate(notebook.cells)
    if "variants = {" in cell.source
  ]
  small = nbformat.v4.new_code_cell(SMALL.format(fields=fields))
  notebook.cells.insert(place + 1, small)
  printed = execute(notebook, tmp_path)
  names = ("CoPS", "no prototypes", "untrained")
  table = printed[-1].splitlines()
  assert [line[:16].strip() for line in table[1:]] == list(names)
  assert all(0 <= float(cell) <= 100 for cell in table[1][16:].split())


@pytest.mark.parametrize("name", ("photographs.ipynb", "prompts.ipynb"))
def test_pictures_and_tables_are_shown_without_running(name):
  shown = [cell.outputs for cell in read(name).cells if "outputs" in cell]
  kinds = {output.output_type for outputs in shown for output in outputs}
  assert {"stream", "display_data"} <= kinds and "error" not in kinds
