"""Confidence intervals hold what they promise."""

import numpy as np
import pytest
from scipy import stats

from cops_jax.metrics import proportions


@pytest.mark.parametrize("share", (0.01, 0.07, 0.3, 0.95))
@pytest.mark.parametrize("total", (8, 48, 306))
def test_the_interval_holds_the_share_at_least_as_often_as_it_says(
  share, total
):
  """By the probability of each count, without drawing any."""
  counts = np.arange(total + 1)
  intervals = [proportions.estimate(int(count), total) for count in counts]
  is_inside = [row.low <= share <= row.high for row in intervals]
  probability = stats.binom.pmf(counts, total, share)
  assert probability[is_inside].sum() >= proportions.CONFIDENCE - 1e-9


def test_few_images_show_little():
  none = proportions.estimate(0, 8)
  assert (none.low, round(none.high, 3)) == (0.0, 0.369)
  assert str(none) == "0 of 8, 0.0% (95% interval 0.0% to 36.9%)"
  all_of_them = proportions.estimate(8, 8)
  assert (round(all_of_them.low, 3), all_of_them.high) == (0.631, 1.0)
