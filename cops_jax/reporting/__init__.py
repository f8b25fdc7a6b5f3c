"""Results as tables, files, a page and a model card."""

from __future__ import annotations

import logging
import os

from cops_jax.errors import InputError
from cops_jax.evaluation.results import Evaluated
from cops_jax.paths import AnyPath, to_path
from cops_jax.reporting.tables import (
  format_table,
  metric_title,
  read_means,
  write_results,
)

__all__ = [
  "format_table",
  "metric_title",
  "read_means",
  "write",
  "write_results",
]

_logger = logging.getLogger(__name__)


def write(workdir: str | os.PathLike, evaluated: Evaluated) -> AnyPath | None:
  """Writes report.html, results.json and scores.csv.

  Returns:
    The path of report.html; None, after a warning, if the files cannot be
    written: the results, perhaps of hours, are still in `evaluated`.
  """
  from cops_jax.reporting.report import write_report  # Tables do without.

  workdir = to_path(workdir)
  try:
    write_results(workdir, evaluated)
    return write_report(workdir, evaluated)
  except InputError as error:
    _logger.warning(
      "the results are not written: %s. Use another --workdir with"
      " --checkpoint=%s to have the files.",
      error,
      workdir,
    )
    return None
