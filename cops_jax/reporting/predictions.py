"""The folder of `cops predict --out`: report, JSON lines, CSV and pictures."""

from __future__ import annotations

import base64
import csv
import io
import json
import logging
import math
import re
import urllib.parse
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from cops_jax import files
from cops_jax.errors import InputError
from cops_jax.images.finding import MANIFEST
from cops_jax.paths import AnyPath
from cops_jax.reporting.report import render_page
from cops_jax.tables import shorten_list
from cops_jax.thresholds import Thresholds

_logger = logging.getLogger(__name__)

PAGE, LINES, TABLE = "index.html", "predictions.jsonl", "predictions.csv"
FILES = (PAGE, LINES, TABLE)
_OWN = re.compile(rf"{'|'.join(FILES)}|(pictures|maps)/[^/]+")
_COLUMNS = (
  *("path", "image_score", "verdict", "threshold", "threshold_method"),
  *("boxes", "tiles", "picture", "note", "error"),
)


def replace_earlier(out: AnyPath, names: Collection[str]) -> None:
  """Deletes the files of an earlier run and lists the new ones in the manifest.

  Files that the command did not write are kept and reported.

  Args:
    out: output folder.
    names: names of the files to write, relative to the folder.

  Raises:
    InputError: if a file that the command did not write has one of the names,
      or the folder cannot be written.
  """
  manifest = out / MANIFEST
  existing = {*files.find_files(out)} - {MANIFEST}
  earlier = set()
  if files.is_file(manifest):
    try:
      listed = {*map(str, json.loads(files.read_file(manifest)))}
    except (TypeError, ValueError) as error:
      raise InputError(f"{manifest} is damaged. Delete it.") from error
    # The manifest can be forged: only names that this command writes count.
    earlier = {name for name in listed & existing if _OWN.fullmatch(name)}
  foreign = sorted(existing - earlier)
  if taken := sorted({*names} & {*foreign}):
    raise InputError(
      f"{out / taken[0]} was not written by this command and would be replaced."
      " Choose another folder or delete the file."
    )
  files.write_file(manifest, files.to_json(sorted({*names} | earlier)))
  for name in earlier:
    files.delete(out / name)
  files.write_file(manifest, files.to_json(sorted(names)))
  if foreign:
    named = ", ".join(shorten_list(foreign, 3))
    _logger.info("keeping files in %s that are not results: %s", out, named)


def write(
  out: AnyPath,
  rows: Sequence[Mapping[str, Any]],
  thumbnails: Mapping[str, bytes],
  summary: str,
  thresholds: Thresholds | None,
  is_toy: bool,
) -> None:
  """Writes predictions.jsonl, predictions.csv and index.html.

  Args:
    out: output folder.
    rows: rows from `predict.to_row`, with the names of pictures in the folder.
    thumbnails: WebP files by the names of the pictures.
    summary: heading of the report.
    thresholds: thresholds of the verdicts; None if there are no verdicts.
    is_toy: True if the scores come from the toy CLIP.

  Raises:
    InputError: if a file cannot be written.
  """
  lines = "".join(files.to_json(row) + "\n" for row in rows)
  files.write_file(out / LINES, lines)
  table = io.StringIO()
  writer = csv.writer(table)
  writer.writerow(_COLUMNS)
  writer.writerows([_cell(row.get(name)) for name in _COLUMNS] for row in rows)
  # Spreadsheets recognize UTF-8 by its byte-order mark only.
  files.write_file(out / TABLE, table.getvalue().encode("utf-8-sig"))
  text = render_page(
    "predictions.html.jinja",
    summary=summary,
    rows=sorted(rows, key=lambda row: -row.get("image_score", -1)),
    thumbnails={
      name: base64.b64encode(file).decode() for name, file in thumbnails.items()
    },
    address=urllib.parse.quote,
    thresholds=thresholds,
    # The scale ends at twice the pixel threshold and is square-rooted.
    mark=round(100 * math.sqrt(0.5), 1),
    is_toy=is_toy,
  )
  files.write_file(out / PAGE, text)


def _cell(value):
  if not isinstance(value, str):
    return json.dumps(value) if isinstance(value, list) else value
  # A spreadsheet would run these as formulas.
  return f"'{value}" if value.startswith(tuple("=+-@\t\r")) else value
