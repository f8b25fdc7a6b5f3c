"""Thresholds: how they are chosen, stored and applied to a map."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from cops_jax import thresholds
from cops_jax.errors import InputError
from cops_jax.files import seal
from cops_jax.thresholds import CONFIDENCE, Thresholds, estimate


@pytest.mark.parametrize("rate, expected", ((0.0, 0), (0.25, 2), (0.3, 2)))
def test_no_more_normal_scores_than_allowed_reach_the_threshold(rate, expected):
  scores = np.array([0.1, 0.9, 0.3, 0.2, 0.8, 0.4, 0.5, 0.6], np.float32)
  threshold = thresholds.of_false_positive_rate(scores, rate)
  assert (scores >= threshold).sum() == expected
  assert np.abs(scores - threshold).min() >= 0.9e-4
  # Tied scores do not reach the threshold, even at the highest score of 1.
  ties = np.ones(8, np.float32)
  assert not (ties >= thresholds.of_false_positive_rate(ties, rate)).any()
  for number in (29, 57, 58):  # Shares that floats do not hold exactly.
    scores = np.arange(100) / 100
    chosen = thresholds.of_false_positive_rate(scores, number / 100)
    assert (scores >= chosen).sum() == number


def test_the_threshold_has_the_largest_balanced_accuracy():
  """Between 0.4 and 0.6 there is one false alarm in three, and no miss."""
  scores = np.array([0.1, 0.4, 0.6, 0.7, 0.8], np.float32)
  labels = np.array([False, False, True, False, True])
  choose = thresholds.of_balanced_accuracy
  assert choose(scores, labels) == pytest.approx(0.5)
  assert np.isnan(choose(scores, labels & False))
  assert np.isnan(choose(scores, labels | True))
  # The highest of equally good thresholds has the fewest false alarms.
  two = np.array([True, False, True])
  assert choose(scores[[1, 2, 3]], two) == pytest.approx(0.65)
  everything = choose(scores[:2], ~labels[:2] & [True, False])
  assert everything < 0.1
  low = np.array([5e-5, 0.3], np.float32)
  assert choose(low, np.array([True, False])) == 0.0


def test_thresholds_are_added_replaced_and_read_back(tmp_path):
  assert thresholds.read_thresholds(tmp_path) == []
  path = tmp_path / "thresholds.json"
  tiled = Thresholds(
    *(0.25, 1.0000001, "by hand", "", estimate(3, 48)), tiles="2x3"
  )
  whole, other = (Thresholds(0.5, 0.5, "", digest) for digest in ("a", "b"))
  newer = Thresholds(0.4, 0.5, "newer", "a")
  for chosen, kept, shown in (
    (tiled, [tiled], ""),
    (whole, [tiled, whole], ", next to those with tiles '2x3'"),
    (
      *(other, [tiled, whole, other]),
      ", next to those with tiles '2x3', next to those for other prompts",
    ),
    (
      *(newer, [tiled, other, newer]),
      ", next to those with tiles '2x3', next to those for other prompts\n"
      f"replaced: {whole}",
    ),
  ):
    sentence = thresholds.write_thresholds(tmp_path, chosen)
    assert sentence == f"written to {path}{shown}"
    assert thresholds.read_thresholds(tmp_path) == kept
  values = dataclasses.asdict(whole)
  for text in (
    "{",
    "[]",
    seal({"image": 1}),
    path.read_text().replace("0.25", "0.3"),
    '{"thresholds": []}',
    seal(values),
    seal({"thresholds": values}),
    *(
      seal({"thresholds": [values | change]})
      for change in (
        *({"image": -1.0}, {"misses": {"count": 1}}, {"misses": 3}),
        {"tiles": "3"},
      )
    ),
  ):
    path.write_text(text)
    with pytest.raises(InputError, match="damaged.*calibrate"):
      thresholds.read_thresholds(tmp_path)


def test_boxes_join_touching_regions_and_ignore_specks():
  anomaly_map = np.zeros((120, 200), np.float32)
  anomaly_map[10:20, 30:50] = 0.5
  anomaly_map[20:25, 50:55] = 0.9
  anomaly_map[60:100, 100:200] = 0.4
  anomaly_map[5, 5] = 1.0
  boxes = thresholds.find_boxes(anomaly_map, 0.4)
  assert boxes == [(100, 60, 200, 100), (30, 10, 55, 25)]
  assert thresholds.find_boxes(anomaly_map, 0.6) == [(50, 20, 55, 25)]
  assert thresholds.find_boxes(np.zeros((5, 5)), 0.1) == []


@pytest.mark.parametrize("share", (0.01, 0.07, 0.3, 0.95))
@pytest.mark.parametrize("total", (8, 48, 306))
def test_the_interval_contains_the_share_with_its_confidence(share, total):
  """The probability of each count is computed, not sampled."""
  counts = np.arange(total + 1)
  intervals = [estimate(int(count), total) for count in counts]
  is_inside = [row.low <= share <= row.high for row in intervals]
  probability = stats.binom.pmf(counts, total, share)
  assert probability[is_inside].sum() >= CONFIDENCE - 1e-9


def test_few_images_have_a_wide_interval():
  none = estimate(0, 8)
  assert (none.low, round(none.high, 3)) == (0.0, 0.369)
  assert str(none) == "0 of 8, 0.0% (95% interval 0.0% to 36.9%)"
  all_of_them = estimate(8, 8)
  assert (round(all_of_them.low, 3), all_of_them.high) == (0.631, 1.0)
