"""Text tables and lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_NUM_EXAMPLES = 3


def align(rows: Sequence[Sequence[str]], num_text_columns: int) -> list[str]:
  """Returns the lines of a table with aligned columns.

  Args:
    rows: cells of each row; all rows have the same number.
    num_text_columns: number of first columns to align left; the remaining
      columns are aligned right.
  """
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    "  ".join(
      cell.ljust(width) if column < num_text_columns else cell.rjust(width)
      for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  ]


def inflect(noun: str, number: int) -> str:
  """Returns the singular or the plural of a noun."""
  if number == 1:
    return noun
  if noun.endswith("y"):
    return f"{noun[:-1]}ies"
  return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def count_of(number: int, noun: str) -> str:
  """Returns a number with its noun, such as "1 image" or "2 images"."""
  return f"{number} {inflect(noun, number)}"


def one_line(name: str) -> str:
  """Returns a name with line breaks and control characters escaped."""
  return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)


def shorten_list(lines: Sequence[str], number: int = 10) -> list[str]:
  """Returns the first lines, and a line that counts the remaining lines."""
  shown = list(lines[:number])
  if len(lines) > number:
    shown.append(f"and {len(lines) - number} more")
  return shown


def group_by_reason(reasons: Mapping[str, str]) -> dict[str, str]:
  """Returns each reason once, by the joined names that share it: "a, b"."""
  groups = {}
  for name, reason in reasons.items():
    groups.setdefault(reason, []).append(name)
  return {", ".join(names): reason for reason, names in groups.items()}


def count_notes(notes: Mapping[str, str]) -> list[str]:
  """Returns a line for each kind of note, with its count and first examples.

  Args:
    notes: lines "KIND: DETAIL" by path.
  """
  kinds = {}
  for path in sorted(notes):
    for line in notes[path].splitlines():
      kind, _, detail = line.partition(": ")
      kinds.setdefault(kind, []).append(f"{path}: {detail}")
  return [
    f"{count_of(len(found), 'image')}: {kind}"
    f" ({'; '.join(shorten_list(found, _NUM_EXAMPLES))})"
    for kind, found in kinds.items()
  ]
