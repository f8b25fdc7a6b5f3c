"""A folder of predictions: a page, lines, a table and pictures."""

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
  """Deletes the files that an earlier run wrote, and lists those of this one.

  Other files are kept and reported.

  Args:
    out: the folder.
    names: of the files that will be written to it, relative to it.

  Raises:
    InputError: one of the names is another file's, or the folder cannot be
      written.
  """
  manifest = out / MANIFEST
  there = {*files.find_files(out)} - {MANIFEST}
  earlier = set()
  if files.is_file(manifest):
    try:
      earlier = {*map(str, json.loads(files.read_file(manifest)))} & there
    except (TypeError, ValueError) as error:
      raise InputError(f"{manifest} is damaged: delete it") from error
  # A list may be anybody's.
  earlier = {name for name in earlier if _OWN.fullmatch(name)}
  others = sorted(there - earlier)
  if taken := sorted({*names} & {*others}):
    raise InputError(
      f"{out / taken[0]} was not written by this command and would be replaced:"
      " choose another folder, or delete it"
    )
  files.write_file(manifest, files.to_json(sorted({*names} | earlier)))
  for name in earlier:
    files.delete(out / name)
  files.write_file(manifest, files.to_json(sorted(names)))
  if others:
    named = ", ".join(shorten_list(others, 3))
    _logger.info("%s has other files, which are kept: %s", out, named)


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
    out: the folder.
    rows: of `predict.to_row`, with the names of pictures in the folder.
    thumbnails: WebP files by the pictures' names.
    summary: what is said first.
    thresholds: of the verdicts, if there are any.
    is_toy: whether the scores are those of the demo's CLIP.

  Raises:
    InputError: they cannot be written.
  """
  lines = "".join(files.to_json(row) + "\n" for row in rows)
  files.write_file(out / LINES, lines)
  table = io.StringIO()
  writer = csv.writer(table)
  writer.writerow(_COLUMNS)
  writer.writerows([_cell(row.get(name)) for name in _COLUMNS] for row in rows)
  # Spreadsheets recognise UTF-8 by its mark alone.
  files.write_file(out / TABLE, table.getvalue().encode("utf-8-sig"))
  text = render_page(
    "found.html.jinja",
    summary=summary,
    rows=sorted(rows, key=lambda row: -row.get("image_score", -1)),
    thumbnails={
      name: base64.b64encode(file).decode() for name, file in thumbnails.items()
    },
    address=urllib.parse.quote,
    thresholds=thresholds,
    mark=round(100 * math.sqrt(0.5), 1),  # On a scale up to twice of it.
    is_toy=is_toy,
  )
  files.write_file(out / PAGE, text)


def _cell(value):
  if not isinstance(value, str):
    return json.dumps(value) if isinstance(value, list) else value
  # No formula in a spreadsheet.
  return f"'{value}" if value.startswith(tuple("=+-@\t\r")) else value
