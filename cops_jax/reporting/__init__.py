"""Results as tables, files and a page."""

from __future__ import annotations

import logging
import os

from cops_jax.errors import InputError
from cops_jax.evaluation.results import Evaluated
from cops_jax.paths import AnyPath, to_path
from cops_jax.reporting.tables import (
  SCHEMA_VERSION,
  compare,
  domains,
  format_table,
  metric_title,
  percent,
  read_means,
  results_json,
  table_rows,
  write_results,
)

__all__ = [
  "SCHEMA_VERSION",
  "compare",
  "domains",
  "format_table",
  "metric_title",
  "percent",
  "read_means",
  "results_json",
  "table_rows",
  "write",
  "write_results",
]

_logger = logging.getLogger(__name__)


def write(workdir: str | os.PathLike, evaluated: Evaluated) -> AnyPath | None:
  """Writes tables and report; gives the page's path.

  Where they cannot be written, it warns and gives None: the results, perhaps of
  hours, are still in `evaluated`.
  """
  from cops_jax.reporting import report  # `compare` needs none of it.

  workdir = to_path(workdir)
  values = (
    evaluated.results,
    evaluated.provenance,
    evaluated.skipped,
    evaluated.failed,
  )
  try:
    write_results(workdir, *values)
    return report.write_report(workdir, *values)
  except InputError as error:
    _logger.warning(
      "the results are not written: %s. Use another --workdir with"
      " --checkpoint=%s to have the files.",
      error,
      workdir,
    )
    return None
