"""The comparison of ways to look, by a detector that sees bright pixels."""

import numpy as np
import pytest

from cops_jax.detector import AnomalyDetector, Detection
from tools import compare_tiles


class Bright(AnomalyDetector):
  """Without a model: what is anomalous is what is bright."""

  max_batch_size = 4
  image_size = 16
  max_pixels = 10**6

  def __init__(self):
    pass

  def detect(self, images):
    maps = [image.pixels.mean(2, dtype=np.float32) / 255 for image in images]
    return [Detection(float(values.max()), values) for values in maps]


def test_a_speck_is_brighter_in_a_tile():
  pixels = np.zeros((320, 320, 3), np.uint8)
  pixels[40:52, 200:212] = 255
  found = compare_tiles.look(Bright(), pixels, ["2x2", "8x8"])
  assert list(found) == [
    ("none", "whole alone"),
    *((grid, rule) for grid in ("2x2", "8x8") for rule in compare_tiles.RULES),
  ]
  scores = {way: score for way, (score, _) in found.items()}
  whole, alone = scores["none", "whole alone"], scores["8x8", "tiles alone"]
  assert whole < scores["2x2", "tiles alone"] < alone
  assert scores["8x8", "larger of both"] == alone
  assert scores["8x8", "mean of both"] == pytest.approx((whole + alone) / 2)
  for _, anomaly_map in found.values():
    assert anomaly_map.shape == (500, 500)
    row, column = np.unravel_index(anomaly_map.argmax(), (500, 500))
    assert abs(row - 72) < 20 and abs(column - 322) < 20


def test_the_command(monkeypatch, capsys):
  monkeypatch.setattr(compare_tiles, "load_detector", Bright)
  monkeypatch.setattr(
    compare_tiles.generated, "EVALUATION_CATEGORIES", ("wood", "gear")
  )
  compare_tiles.main(["--number=1", "--size=120", "--grids=1x2"])
  head, *rows = capsys.readouterr().out.splitlines()
  assert head.split()[:2] == ["tiles", "rule"] and len(rows) == 4
  for row in rows:
    assert all(0 <= float(value) <= 100 for value in row.split()[-3:])
