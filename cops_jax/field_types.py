"""The type of a config's fields, and what may depend on one."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

_MAX_INT = 2**31 - 1


class Role(enum.Flag):
  """The kinds of results that depend on a field.

  Nothing depends on where the backbone's weights and the data are: their
  hashes are compared.
  """

  # A run is resumed with the same value only.
  TRAINING = enum.auto()
  # An evaluation's kept results are used again with the same value only.
  RESULTS = enum.auto()


@dataclasses.dataclass(frozen=True)
class Field:
  """A field of a config.

  Attributes:
    default: value where nothing sets it; every value has its type.
    comment: description that --help shows.
    role: what depends on it; None is the role of its section in `SECTIONS`. A
      field without a role means only where, how fast and how visibly something
      is done.
    choices: the only values; empty if there are others.
    low: smallest value.
    high: largest value, see `highest`.
    below: number that values are smaller than.
    is_local: whether each process of a job may have a value of its own.
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
    """Whether a value of the field's type is within its limits."""
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
    """Largest value; for whole numbers by default that of an int32."""
    is_whole = type(self.default) is int
    return _MAX_INT if self.high is None and is_whole else self.high

  def describe_limits(self) -> str:
    """Returns what a value must be, for messages."""
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
