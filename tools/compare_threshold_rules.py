"""Compares rules that choose a threshold, on a run's scores.

  python -m tools.compare_threshold_rules --workdir=runs/demo

Half of the images of each kind are drawn from, with replacement, at several
ratios of normal to anomalous ones; each rule chooses a threshold by what was
drawn, and the other half of the images, never drawn from, says how many false
alarms and misses it gives. Medians of 300 repetitions, and in brackets what one
in twenty exceeds, in percent. docs/thresholds.md has the result on the demo.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cops_jax import metrics
from cops_jax.commands import command_line
from cops_jax.errors import InputError
from cops_jax.paths import to_path
from cops_jax.tables import align

# Normal and anomalous images: what was met in practice, MVTec AD's ratio, as
# many of both, mostly normal ones, few.
_DRAWN = ((48, 306), (107, 290), (100, 100), (306, 48), (20, 20))
_REPETITIONS = 300


def _equal_error_threshold(scores, labels):
  """The highest score at which the larger of both error rates is least."""
  distinct = np.unique(scores)
  normal, anomalous = (np.sort(scores[labels == kind]) for kind in (0, 1))
  misses = np.searchsorted(anomalous, distinct) / len(anomalous)
  false_alarms = 1 - np.searchsorted(normal, distinct) / len(normal)
  worse = np.maximum(misses, false_alarms)
  return distinct[np.flatnonzero(worse == worse.min())[-1]]


RULES: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = {
  "largest F1": metrics.best_image_threshold,
  "balanced accuracy": metrics.balanced_image_threshold,
  "equal errors": _equal_error_threshold,
}


def compare(
  scores: np.ndarray, labels: np.ndarray, drawn: tuple[int, int], rule: str
) -> np.ndarray:
  """False alarms and misses of thresholds that a rule chose.

  Args:
    scores: of images.
    labels: whether they are anomalous.
    drawn: numbers of normal and anomalous images that a threshold is chosen by.
    rule: of `RULES`.

  Returns:
    Shares (r, 2), a row for each repetition.
  """
  rng = np.random.default_rng(0)
  is_chosen_by = np.repeat((False, True), drawn)
  rows = []
  for _ in range(_REPETITIONS):
    halves = [
      np.array_split(rng.permutation(scores[labels == kind]), 2)
      for kind in (False, True)
    ]
    sample = [
      rng.choice(half, number)
      for (half, _), number in zip(halves, drawn, strict=True)
    ]
    threshold = RULES[rule](np.concatenate(sample), is_chosen_by)
    (_, normal), (_, anomalous) = halves
    rows.append(((normal >= threshold).mean(), (anomalous < threshold).mean()))
  return np.array(rows)


def _read(workdir):
  path = to_path(workdir) / "scores.csv"
  try:
    with path.open(newline="") as file:
      rows = list(csv.DictReader(file))
  except OSError as error:
    raise InputError(
      f"{path} cannot be read: {error.strerror}. Evaluate first: cops evaluate"
      f" --workdir={workdir}"
    ) from error
  scores = np.array([float(row["image_score"]) for row in rows])
  return scores, np.array([row["label"] == "1" for row in rows])


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m tools.compare_threshold_rules",
    description=__doc__.partition("\n")[0],
    allow_abbrev=False,
  )
  parser.add_argument("--workdir", required=True, help="of an evaluated run")
  scores, labels = _read(parser.parse_args(arguments).workdir)
  table = [("normal, anomalous", "rule", "false alarms", "misses")]
  for drawn in _DRAWN:
    for rule in RULES:
      shares = 100 * compare(scores, labels, drawn, rule)
      cells = (
        f"{np.median(column):.1f} ({np.quantile(column, 0.95):.1f})"
        for column in shares.T
      )
      table.append((f"{drawn[0]}, {drawn[1]}", rule, *cells))
  print("\n".join(align(table, num_text_columns=2)))


if __name__ == "__main__":
  main()
