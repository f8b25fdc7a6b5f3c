import pytest

from helpers.original_layouts import write_parts


@pytest.fixture
def tiny(config, tmp_path):
  """Config that trains on six images of a folder, two per step."""
  tree = write_parts(tmp_path / "parts")
  config.train.dataset = f"folder:{tree.root}"
  config.train.batch_size = 2
  config.train.log_every_steps = 2
  config.train.checkpoint_every_steps = 100
  return config
