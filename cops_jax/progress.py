"""Log messages and the progress of long tasks."""

from __future__ import annotations

import datetime
import logging
import time

_logger = logging.getLogger(__name__)

_INTERVAL_SECONDS = 5.0


def show_messages() -> None:
  """Prints this project's log messages to standard error, without prefixes."""
  # Other packages stay silent: JAX and Orbax log every detail at this level.
  logger = logging.getLogger("cops_jax")
  logger.setLevel(logging.INFO)
  logger.propagate = False
  handler = logging.StreamHandler()
  handler.setFormatter(logging.Formatter("%(message)s"))
  logger.handlers = [handler]


def gigabytes(number: int) -> str:
  """Returns a number of bytes as text, in gigabytes."""
  return f"{number / 1e9:.3g} GB"


class Progress:
  """Logs progress from `start` to `total`; `unit` is a plural noun."""

  def __init__(self, total: int, unit: str, start: int = 0):
    self._total, self._unit, self._start = total, unit, start
    self._began = self._logged = time.monotonic()

  def update(self, done: int, message: str) -> None:
    """Logs the progress every few seconds, and once the total is reached."""
    now = time.monotonic()
    if done < self._total and now - self._logged < _INTERVAL_SECONDS:
      return
    self._logged = now
    rate = (done - self._start) / max(now - self._began, 1e-9)
    left = (self._total - done) / max(rate, 1e-9)
    _logger.info(
      "%s: %d/%d %s, %.1f %s/s, %s left",
      message,
      done,
      self._total,
      self._unit,
      rate,
      self._unit,
      datetime.timedelta(seconds=round(left)),
    )
