"""Tables of text."""

from __future__ import annotations

from collections.abc import Sequence


def align(rows: Sequence[Sequence[str]], num_text_columns: int) -> list[str]:
  """Lines with aligned columns.

  Args:
    rows: of equally many cells.
    num_text_columns: the first, left-aligned; the rest are right-aligned.
  """
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    "  ".join(
      cell.ljust(width) if column < num_text_columns else cell.rjust(width)
      for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  ]
