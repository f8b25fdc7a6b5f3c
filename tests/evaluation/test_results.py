"""Means over categories and data sets."""

import math

import pytest

from cops_jax.evaluation import results
from helpers.made_results import FIRST, NOTHING, SECOND, make_result, row


def test_means_ignore_undefined_values():
  mean = make_result(FIRST, SECOND).mean
  assert mean == pytest.approx(row(0.8, 0.7, 0.6, 0.6, 0.5, 0.4, 0.3, 0.2))
  assert all(map(math.isnan, make_result(NOTHING).mean.values()))


def test_data_sets_have_equal_weights_in_group_means():
  """The number of categories in a data set does not matter."""
  found = {
    "a": make_result(FIRST),
    "b": make_result(SECOND, SECOND, SECOND),
    "c": make_result(FIRST),
  }
  domains = {"a": "industrial", "b": "industrial", "c": "medical"}
  means = results.group_means(found, domains)
  assert list(means) == ["industrial mean", "overall mean"]
  assert means["industrial mean"]["image_auroc"] == pytest.approx(0.8)
  assert means["overall mean"]["image_auroc"] == pytest.approx(2.5 / 3)
  assert means["overall mean"]["pixel_ap"] == pytest.approx(0.5)
  assert results.group_means({"a": found["a"]}, domains) == {}
