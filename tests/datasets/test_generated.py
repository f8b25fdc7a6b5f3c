"""Generated images: disjoint categories, reproducibility and exact masks."""

import pathlib

import numpy as np
import pytest

from cops_jax.datasets import generated
from tools import pretrain_demo_clip
from tools.pretrain_demo_clip.categories import (
  CATEGORIES as PRETRAINING_CATEGORIES,
)

ALL = {**generated.CATEGORIES, **PRETRAINING_CATEGORIES}


def test_evaluation_is_disjoint_from_all_training():
  training = set(generated.TRAINING_CATEGORIES)
  evaluation = set(generated.EVALUATION_CATEGORIES)
  pretraining = set(PRETRAINING_CATEGORIES)
  assert training < pretraining and not evaluation & pretraining
  assert len(pretraining) >= 30
  tools = pathlib.Path(pretrain_demo_clip.__file__).parent
  assert not any(
    "evaluation_only" in path.read_text() for path in tools.glob("*.py")
  )
  assert not set(generated.SEEN_DEFECTS) & set(generated.UNSEEN_DEFECTS)
  for names in (training, evaluation):
    kinds = sorted(generated.CATEGORIES[name].kind for name in names)
    assert kinds == ["object"] * 3 + ["surface"] * 3


@pytest.mark.parametrize("name", ALL)
def test_scenes_have_the_requested_size_and_range(name):
  image, foreground = ALL[name].render(np.random.default_rng(1), 112)
  assert image.shape == (112, 112, 3) and image.dtype == np.float32
  assert foreground.shape == (112, 112) and foreground.dtype == bool
  assert image.min() >= 0 and image.max() <= 1
  is_surface = ALL[name].kind == "surface"
  assert foreground.all() if is_surface else 0.02 < foreground.mean() < 0.8


@pytest.mark.parametrize("defect", generated.DEFECTS)
def test_a_defect_changes_only_the_pixels_in_its_mask(defect):
  rng = np.random.default_rng(2)
  categories = list(ALL.values())
  for size in (112,) * 12 + (48, 160):
    category = categories[rng.integers(len(categories))]
    image, normal, mask = generated.generate_pair(category, defect, rng, size)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8
    assert mask.shape == (size, size) and mask.dtype == bool
    difference = np.abs(image.astype(int) - normal).max(-1)
    assert not difference[~mask].any()
    assert mask.sum() >= 6 and mask.mean() < 0.2
    assert (difference[mask] > 0).mean() > 0.5


def test_images_are_a_function_of_the_generator():
  first, second, other = (
    generated.generate("wood", "warp", np.random.default_rng(seed))
    for seed in (3, 3, 4)
  )
  np.testing.assert_array_equal(first[0], second[0])
  np.testing.assert_array_equal(first[1], second[1])
  assert (first[0] != other[0]).any()
  normal, mask = generated.generate("chip", None, np.random.default_rng(5))
  _, base, _ = generated.generate_pair("chip", "hole", np.random.default_rng(5))
  np.testing.assert_array_equal(normal, base)
  assert not mask.any()
