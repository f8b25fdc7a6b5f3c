"""The comparison of rules, on scores whose best threshold is known."""

import numpy as np
import pytest

from tools import compare_threshold_rules


@pytest.fixture(scope="module")
def scores():
  """Normal from 0 to 0.6, anomalous from 0.3 to 0.9; a half overlaps."""
  rng = np.random.default_rng(0)
  values = np.concatenate(
    [rng.uniform(0, 0.6, 300), rng.uniform(0.3, 0.9, 300)]
  )
  return values, np.arange(600) >= 300


@pytest.mark.parametrize("rule", compare_threshold_rules.RULES)
def test_with_as_many_of_both_every_rule_is_useful(scores, rule):
  shares = compare_threshold_rules.compare(*scores, (100, 100), rule)
  assert np.median(shares.sum(1)) < 0.6


def test_only_the_largest_f1_fails_where_most_are_anomalous(scores):
  for rule in compare_threshold_rules.RULES:
    shares = compare_threshold_rules.compare(*scores, (20, 400), rule)
    assert (np.median(shares[:, 0]) > 0.4) == (rule == "largest F1")


def test_the_command(tmp_path, scores, capsys):
  rows = zip(*scores, strict=True)
  lines = [f"a,b,{i},{int(row[1])},{row[0]}" for i, row in enumerate(rows)]
  head = "dataset,category,path,label,image_score"
  (tmp_path / "scores.csv").write_text("\n".join([head, *lines]))
  compare_threshold_rules.main([f"--workdir={tmp_path}"])
  table = capsys.readouterr().out.splitlines()
  assert table[0].split() == [
    "normal,",
    "anomalous",
    "rule",
    "false",
    "alarms",
    "misses",
  ]
  assert len(table) == 16
  with pytest.raises(SystemExit, match="Evaluate first"):
    compare_threshold_rules.main([f"--workdir={tmp_path}/none"])
