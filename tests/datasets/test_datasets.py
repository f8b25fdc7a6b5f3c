"""Loading data sets by name, and the demo's data sets."""

import collections
import io

import numpy as np
import pytest
from PIL import Image

from cops_jax import datasets
from cops_jax.datasets import generated
from cops_jax.errors import InputError


@pytest.fixture(scope="module")
def unseen(data_dir):
  return datasets.load("demo_unseen", "test", data_dir)


def test_unknown_names_are_refused(data_dir):
  with pytest.raises(
    InputError, match="'mvtec' .*known data sets are mvtec_ad, visa, .*fo"
  ):
    datasets.load("mvtec", "test")
  with pytest.raises(InputError, match="no split 'train'; it has: test"):
    datasets.load("demo_auxiliary", "train", data_dir)


def test_the_training_split_of_the_demo_is_normal(data_dir):
  normal = datasets.load("demo_unseen", "train", data_dir)
  kinds = collections.Counter(normal.categories_and_labels())
  assert kinds == {(name, 0): 8 for name in generated.EVALUATION_CATEGORIES}


def test_examples_are_complete(unseen):
  ids = [example["id"] for example in unseen]
  assert len(ids) == len(set(ids)) == 612
  assert {e["category"] for e in unseen} == set(generated.EVALUATION_CATEGORIES)
  kinds = {e["anomaly_kind"] for e in unseen}
  assert kinds == {"good", *generated.SEEN_DEFECTS, *generated.UNSEEN_DEFECTS}
  kinds = collections.Counter(unseen.categories_and_labels())
  assert kinds["gear", 0] == 51 and kinds["gear", 1] == 51
  for example in unseen:
    assert example["label"] == (example["anomaly_kind"] != "good")
    assert example["dataset"] == "demo_unseen"
    assert example["path"].startswith(f"{example['category']}/test/")
  example = next(e for e in unseen if e["id"] == "gear/test/burn/001")
  image, mask = (
    np.asarray(Image.open(io.BytesIO(example[name])))
    for name in ("image", "mask")
  )
  assert image.shape == (112, 112, 3) and mask.shape == (112, 112)
  assert set(np.unique(mask)) == {0, 255}
