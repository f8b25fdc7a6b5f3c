"""The table of all methods."""

from cops_jax import config as configuration
from helpers.config import make_config
from helpers.images import write_folder
from helpers.scripts import run
from tools import compare_methods


def test_all_methods_in_one_table(
  clip_folder, data_dir, tmp_path, monkeypatch, capsys
):
  folder = write_folder(tmp_path / "parts", 6)

  def small(name):
    config = make_config(clip_folder, data_dir, name)
    config.train.dataset = folder
    config.train.num_epochs = 0  # Training has tests of its own.
    return config

  monkeypatch.setattr(compare_methods, "recipe", small)
  workdir = tmp_path / "methods"
  arguments = [f"--workdir={workdir}", "--seeds=0,1", f"--datasets={folder}"]
  compare_methods.main([*arguments, f"--data_dir={data_dir}"])
  table = capsys.readouterr().out
  assert (workdir / "methods.txt").read_text() == table
  rows = [line.split() for line in table.splitlines()]
  assert rows[0][:4] == ["data", "set", "recipe", "seeds"]
  assert "diff" not in table
  assert [row[:3] for row in rows[1:]] == [
    ["parts", "demo", "2"],
    ["parts", "anomalyclip_demo", "2"],
    ["parts", "prompt_ensemble_demo", "1"],
  ]
  assert table.splitlines()[1].count("±") == 8
  assert "±" not in table.splitlines()[3]


def test_bad_input_is_reported(tmp_path):
  for argument, expected in (
    ("--recipes=vsia", "'vsia' is not a recipe"),
    ("--seeds=a", "--seeds=a: invalid literal"),
  ):
    code, _, err = run(
      "-m", "tools.compare_methods", f"--workdir={tmp_path}", argument
    )
    assert code == 1 and expected in err and "Traceback" not in err
  assert set(compare_methods._RECIPES.split(",")) <= set(
    configuration.recipe_names()
  )
