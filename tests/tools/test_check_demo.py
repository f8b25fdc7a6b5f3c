"""The last line that `make demo` prints."""

import math

import pytest

from configs.demo import EXPECTED_PERCENT
from helpers.scripts import ROOT
from tools.check_demo import check


@pytest.mark.parametrize(
  "image_auroc, pixel_auroc, is_expected",
  (
    (0.84, 0.91, True),
    (0.8296, 0.9284, True),  # Rounded as in the table: 83.0 and 92.8.
    (0.62, 0.91, False),
    (0.84, 0.935, False),
    (math.nan, 0.91, False),
  ),
)
def test_the_range_is_checked(image_auroc, pixel_auroc, is_expected):
  found, line = check({"image_auroc": image_auroc, "pixel_auroc": pixel_auroc})
  assert found == is_expected
  assert line.count("\n") == 0
  assert ("NOT as expected" in line) == (not is_expected)
  assert ("OUTSIDE" in line) == (not is_expected)


def test_the_readme_shows_the_measured_range():
  """The expected range is half a point wider at both ends."""
  low, high = EXPECTED_PERCENT["image_auroc"]
  pixel_low, pixel_high = EXPECTED_PERCENT["pixel_auroc"]
  row = (
    f"| trained | {low + 0.5:.1f} to {high - 0.5:.1f} |"
    f" {pixel_low + 0.5:.1f} to {pixel_high - 0.5:.1f} |"
  )
  assert row in (ROOT / "README.md").read_text("utf-8")
