"""The types that declare a config's fields, their limits and their roles."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

_MAX_INT = 2**31 - 1


class Role(enum.Flag):
  """Kinds of results that depend on a field.

  Fields that locate weights and data have no role, because hashes of the
  contents are compared instead.
  """

  # A run resumes only with the same value.
  TRAINING = enum.auto()
  # An evaluation reuses stored results only with the same value.
  RESULTS = enum.auto()


@dataclasses.dataclass(frozen=True)
class Field:
  """A field of a config.

  Attributes:
    default: value of the field if nothing sets it; all values have its type.
    comment: description that --help prints.
    role: results that depend on the field; None means the role of its section
      in `SECTIONS`. A field without a role affects only where files are, how
      fast a run is, and what it shows.
    choices: the allowed values; empty if the field has limits instead.
    low: smallest value.
    high: largest value; see `highest`.
    below: exclusive upper limit.
    is_local: True if the processes of a job can have different values.
  """

  default: Any
  comment: str
  role: Role | None = None
  choices: tuple[str, ...] = ()
  low: int | float | None = None
  high: int | float | None = None
  below: int | float | None = None
  is_local: bool = False

  def accepts(self, value: Any) -> bool:
    """Returns whether a value of the field's type is within its limits."""
    if self.choices:
      return value in self.choices
    if isinstance(value, tuple):
      return len(set(value)) == len(value)
    return (
      (self.low is None or value >= self.low)
      and (self.highest is None or value <= self.highest)
      and (self.below is None or value < self.below)
    )

  @property
  def highest(self) -> int | float | None:
    """The largest value; by default that of an int32 for whole numbers."""
    is_whole = type(self.default) is int
    return _MAX_INT if self.high is None and is_whole else self.high

  def describe_limits(self) -> str:
    """Returns a description of the allowed values, for messages."""
    if self.choices:
      return f"one of {', '.join(self.choices)}"
    if isinstance(self.default, tuple):
      return "a list without repetition"
    limits = {
      "at least": self.low,
      "at most": self.highest,
      "below": self.below,
    }
    return " and ".join(
      f"{words} {limit}" for words, limit in limits.items() if limit is not None
    )
