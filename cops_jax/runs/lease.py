"""A lock in object storage, which has none: a file that its holder renews."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from cops_jax import buckets
from cops_jax.errors import InputError
from cops_jax.paths import AnyPath
from cops_jax.runtime import processes, signals

_logger = logging.getLogger(__name__)

# In seconds: between two renewals; without any, until a holder counts as dead;
# between two looks at it.
_INTERVAL, _LAPSE, _LOOK = 20.0, 90.0, 5.0


class Lease:
  """Held from `acquire` to `release`, or until the process dies.

  Whoever finds one that is not renewed for a while takes it over. A holder that
  was cut off for so long, and finds it taken, ends its process.

  Args:
    address: of the file.
    facts: about the holder, for others to show.
    end: ends this process, with a message and an exit status.
    interval, lapse, look: see above, in seconds.
  """

  def __init__(
    self,
    address: AnyPath,
    facts: Mapping[str, Any],
    end: Callable[[str, int], None] = processes.end_process,
    *,
    interval: float = _INTERVAL,
    lapse: float = _LAPSE,
    look: float = _LOOK,
  ):
    self._address, self._end = address, end
    self._interval, self._lapse, self._look = interval, lapse, look
    self._values = {
      **facts,
      "machine": _machine(),
      "token": secrets.token_hex(),
      "renewed": 0,
    }
    self._is_released = threading.Event()

  def acquire(self) -> None:
    """Waits for a holder that may be dead, if there is one.

    Raises:
      InputError: the holder, which is named, is alive.
      OSError: the file cannot be written.
    """
    while not self._create():
      found = self._read()
      if found is None:
        continue  # It was released meanwhile.
      if not self._is_dead(found):
        raise InputError(describe(found))
      buckets.delete(self._address)
    threading.Thread(target=self._keep_renewing, daemon=True).start()

  def release(self) -> None:
    """Lets others have it."""
    self._is_released.set()
    try:
      if self._is_mine(self._read()):
        buckets.delete(self._address)
    except OSError as error:
      _logger.warning("%s is left behind: %s", self._address, error.strerror)

  def _create(self):
    try:
      content = json.dumps(self._values).encode()
      buckets.write(self._address, content, must_be_new=True)
      return True
    except FileExistsError:
      return False

  def _read(self):
    """What the file says; None without one."""
    try:
      found = json.loads(buckets.read(self._address))
      return found if isinstance(found, dict) else {}
    except FileNotFoundError:
      return None
    except ValueError:
      return {}

  def _is_mine(self, found):
    return bool(found) and found.get("token") == self._values["token"]

  def _is_dead(self, found):
    if found.get("machine") == _machine() != "":
      try:
        os.kill(found["process"], 0)
      except ProcessLookupError:
        return True
      except OSError:
        pass
    _logger.info(
      "%s: waiting up to %.0f s to see whether it is still running",
      describe(found),
      self._lapse,
    )
    until = time.monotonic() + self._lapse
    while time.monotonic() < until:
      time.sleep(self._look)
      if self._read() != found:
        return False
    return True

  def _keep_renewing(self):
    while not self._is_released.wait(self._interval):
      try:
        found = self._read()
        if self._is_released.is_set():
          return
        if not self._is_mine(found):
          who = describe(found) if found else "somebody who deleted it"
          self._end(
            f"{self._address} was taken over by {who}, as the bucket could not"
            " be reached from here. This process ends, and what it saved stays"
            f" (exit code {signals.EXIT_CODE})",
            signals.EXIT_CODE,
          )
          return
        self._values["renewed"] += 1
        buckets.write(self._address, json.dumps(self._values).encode())
      except OSError as error:
        _logger.warning(
          "%s cannot be renewed: %s", self._address, error.strerror
        )


def describe(found: Mapping[str, Any]) -> str:
  """Who holds a lock, as far as that is known."""
  try:
    return (
      f"process {found['process']} on host {found['host']}, since"
      f" {found['since']}"
    )
  except KeyError:
    return "another process"


def _machine():
  """Tells whose process numbers are whose; "" where that cannot be told."""
  try:
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    namespace = os.stat("/proc/self/ns/pid").st_ino
  except OSError:
    return ""
  return f"{socket.gethostname()} {boot} {namespace}"
