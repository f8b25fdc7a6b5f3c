import pytest

from helpers.original_layouts import Tree


@pytest.fixture
def tree(tmp_path):
  """Writes two categories; only the first has masks."""
  tree = Tree(tmp_path / "screws")
  for category in ("long", "short"):
    tree.image(f"{category}/train/good/0.png", "train", category)
    tree.image(f"{category}/test/good/0.jpg", "test", category)
    mask = "long/ground_truth/bent/1_mask.png" if category == "long" else None
    tree.image(
      f"{category}/test/bent/1.jpg", "test", category, "bent", "L", mask
    )
  tree.mask("long/ground_truth/bent/1_mask.png")
  return tree
