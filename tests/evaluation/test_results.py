"""Results: means, and the way to a file and back."""

import dataclasses
import json
import math

import pytest

from cops_jax.errors import InputError
from cops_jax.evaluation import results
from helpers.made_results import FIRST, NOTHING, SECOND, make_result, row


def test_means_leave_out_what_is_undefined():
  mean = make_result(FIRST, SECOND).mean
  assert mean == pytest.approx(row(0.8, 0.7, 0.6, 0.6, 0.5, 0.4, 0.3, 0.2))
  assert all(map(math.isnan, make_result(NOTHING).mean.values()))


def test_group_means():
  """Data sets weigh the same, however many categories they have."""
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


def test_round_trip():
  result = make_result(FIRST, SECOND)
  key = {"a": [1, 2], "b": None}
  text = results.to_json(result, key)
  json.loads(text, parse_constant=pytest.fail)  # No NaN, which JSON lacks.
  again = results.from_json(text, key)
  assert again.images == result.images
  assert again.pictures == result.pictures
  for field in ("skipped", "identity", "data_sha256", "seconds"):
    assert getattr(again, field) == getattr(result, field)
  assert again.peak_memory_bytes == result.peak_memory_bytes
  for name, category in result.categories.items():
    for field in dataclasses.fields(category):
      got = getattr(again.categories[name], field.name)
      want = getattr(category, field.name)
      assert repr(got) == repr(want), field.name
  assert results.from_json(text, {**key, "a": [1]}) is None
  for damaged in (text[:-20], "[]", "3", text.replace('"skipped"', '"x"')):
    with pytest.raises(InputError):
      results.from_json(damaged, key)
