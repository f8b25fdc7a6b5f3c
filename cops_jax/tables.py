"""Tables of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


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


def one_line(name: str) -> str:
  """A name for tables: what would break a line is escaped."""
  return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)


def shorten_list(lines: Sequence[str], number: int = 10) -> list[str]:
  """The first lines, and how many more there are."""
  shown = list(lines[:number])
  if len(lines) > number:
    shown.append(f"and {len(lines) - number} more")
  return shown


def group_by_reason(reasons: Mapping[str, str]) -> dict[str, str]:
  """The reasons by "a, b", the names that share one."""
  groups = {}
  for name, reason in reasons.items():
    groups.setdefault(reason, []).append(name)
  return {", ".join(names): reason for reason, names in groups.items()}


def count_notes(notes: Mapping[str, str], number: int = 3) -> list[str]:
  """Returns a line for each kind of notes: how many, and the first of them.

  Args:
    notes: by path, each line as "KIND: DETAIL".
    number: of the paths that are named.
  """
  kinds = {}
  for path in sorted(notes):
    for line in notes[path].splitlines():
      kind, _, detail = line.partition(": ")
      kinds.setdefault(kind, []).append(f"{path}: {detail}")
  return [
    f"{len(found)} {'image' if len(found) == 1 else 'images'}: {kind}"
    f" ({'; '.join(shorten_list(found, number))})"
    for kind, found in kinds.items()
  ]
