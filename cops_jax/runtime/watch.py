"""The processes of a cluster end together, and say which of them ended first.

Each holds a connection to the first process and sends a line every few seconds.
The system closes the connections of a process that dies, so that the first
process knows at once; a host that is lost is silent. It tells the others, and
all end with a sentence. Without this they would wait in what they compute
together until JAX aborts them, minutes later.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hmac
import json
import logging
import multiprocessing
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from cops_jax.errors import InputError, shorten
from cops_jax.runtime import signals

_logger = logging.getLogger(__name__)

# In seconds: between two lines; without any, until a process counts as lost;
# for a process that is told of another's error to end with its own; for the
# news of a death to come before an error that the death brings about is told.
_INTERVAL, _SILENCE, _GRACE, _NEWS = 5.0, 90.0, 10.0, 2.0

_KEY, _EXCUSED_KEY = "cops_jax/watch", "cops_jax/watch_excused"
_GOES_ON = (
  "This process ends too; the same command goes on from what is saved (exit"
  f" code {signals.EXIT_CODE})"
)


def end_process(message, code):
  if message:
    os.write(2, f"{message}\n".encode())
  for child in multiprocessing.active_children():
    child.terminate()
  os._exit(code)  # Nothing else ends a thread that waits for another process.


class Watch:
  """One process's part.

  Args:
    process: its number; the first is 0.
    token: the cluster's secret.
    end: ends this process, with a message and an exit status.
    interval, silence, grace, news: see above, in seconds.

  Attributes:
    is_over: whether this process needs the others no more.
  """

  def __init__(
    self,
    process: int,
    token: str,
    end: Callable[[str, int], None] = end_process,
    *,
    interval: float = _INTERVAL,
    silence: float = _SILENCE,
    grace: float = _GRACE,
    news: float = _NEWS,
  ):
    self._process, self._token, self._end = process, token, end
    self._interval, self._silence, self._grace = interval, silence, grace
    self._news = news
    self._facts: dict[str, Any] = {}
    self._writers: list[asyncio.StreamWriter] = []
    self._joined: set[int] = set()
    self._has_failed, self.is_over = False, False
    self._loop = asyncio.new_event_loop()
    threading.Thread(target=self._loop.run_forever, daemon=True).start()

  def serve(
    self, num_processes: int, excused: Callable[[], set[int]] = set
  ) -> int:
    """To be called in the first process; gives the port for the others.

    Args:
      num_processes: in the cluster; they are to join in `silence` seconds.
      excused: gives those of them that cannot.
    """
    if socket.has_dualstack_ipv6():  # One port for both kinds of addresses.
      options = {"family": socket.AF_INET6, "dualstack_ipv6": True}
    else:
      options = {}
    listening = socket.create_server(("", 0), **options)
    self._do(asyncio.start_server(self._hear_other, sock=listening))
    self._submit(self._keep_talking())
    self._submit(self._await_all(num_processes, excused))
    return listening.getsockname()[1]

  def join(self, host: str, port: int) -> None:
    """To be called in the other processes.

    Raises:
      OSError: the first process cannot be reached.
    """
    reader, writer = self._do(asyncio.open_connection(host, port))
    self._writers.append(writer)
    hello = {"process": self._process, "host": socket.gethostname()}
    self._do(self._send(token=self._token, **hello))
    self._submit(self._hear(reader, writer, f"process 0 on {host}"))
    self._submit(self._keep_talking())

  def note(self, **facts: Any) -> None:
    """What this process does: doing="evaluating visa", step=12, saved=10."""
    self._facts = {**self._facts, **facts}

  def finish(self) -> None:
    """This process needs the others no more, and none will miss it."""
    self.is_over = True
    self._do(self._send(end=True))

  def fail(self, reason: str, code: int) -> None:
    """Tells the others why this process ends, and with which exit status."""
    self._has_failed = self.is_over = True
    name = f"process {self._process} on {socket.gethostname()}"
    sentence = f"{name} ended{_describe(self._facts)}: {reason}"
    self._do(self._send(end=True, gone=sentence, code=code, grace=self._grace))
    # An orderly exit waits for the others, which have ended by then.
    self._loop.call_soon_threadsafe(
      self._loop.call_later, 1.5 * self._grace, self._end, "", code
    )

  def _submit(self, coroutine):
    return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

  def _do(self, coroutine):
    return self._submit(coroutine).result()

  async def _send(self, **message):
    line = json.dumps(message).encode() + b"\n"
    self._writers = [one for one in self._writers if not one.is_closing()]
    for writer in self._writers:
      with contextlib.suppress(OSError):
        writer.write(line)
        await asyncio.wait_for(writer.drain(), self._interval)

  async def _keep_talking(self):
    while True:
      await self._send(facts=self._facts)
      await asyncio.sleep(self._interval)

  async def _await_all(self, num_processes, excused):
    await asyncio.sleep(self._silence)
    absent = set(range(1, num_processes)) - self._joined - excused()
    if absent:
      names = ", ".join(map(str, sorted(absent)))
      sentence = (
        f"not all processes joined within {self._silence:.0f} s: {names}"
        f" of {num_processes} did not. {_GOES_ON}"
      )
      await self._leave(sentence, signals.EXIT_CODE, grace=0)

  async def _hear_other(self, reader, writer):
    """The first process hears another one."""
    try:
      line = await asyncio.wait_for(reader.readline(), self._silence)
      hello = json.loads(line)
      is_known = hmac.compare_digest(hello["token"], self._token)
      number = int(hello["process"])
      name = f"process {number} on {hello['host']}"
    except (OSError, ValueError, TypeError, KeyError):
      is_known = False
    if not is_known:
      writer.close()
      return
    self._writers.append(writer)
    self._joined.add(number)
    await self._hear(reader, writer, name)

  async def _hear(self, reader, writer, name):
    """Reads what a process says until it is over, and acts upon its end."""
    facts, has_ended = {}, False
    fault = "ended without a word: killed, out of memory, or its host is lost"
    while True:
      try:
        line = await asyncio.wait_for(reader.readline(), self._silence)
        if not line:
          break
        message = json.loads(line)
      except TimeoutError:
        fault = f"was silent for {self._silence:.0f} s"
        break
      except (OSError, ValueError):
        break
      facts = message.get("facts", facts)
      has_ended |= "end" in message
      if "gone" in message:
        await self._leave(message["gone"], message["code"], message["grace"])
    writer.close()
    if has_ended:
      await self._leave_behind()
    else:
      sentence = f"{name}{_describe(facts)} {fault}. {_GOES_ON}"
      await self._leave(sentence, signals.EXIT_CODE, grace=0)

  async def _leave(self, sentence, code, grace):
    if self._process == 0:  # Through which the others hear of each other.
      await self._send(gone=sentence, code=code, grace=grace)
    if not self._has_failed:  # Who has ends with its own words.
      await asyncio.sleep(grace)
      self._end(sentence, code)

  async def _leave_behind(self):
    """Ends a process that waits, with all done, for others that are gone."""
    await asyncio.sleep(self._news)
    are_gone = all(writer.is_closing() for writer in self._writers)
    if are_gone and self.is_over and not self._has_failed:
      self._end("", 0)


def _describe(facts):
  """What a process did last, as far as it said so."""
  words = []
  if facts.get("doing"):
    words.append(facts["doing"])
  if "step" in facts:
    words.append(f"after step {facts['step']}")
  if "saved" in facts:
    words.append(f"with checkpoint {facts['saved']} saved")
  return f" ({', '.join(words)})" if words else ""


def _delay_aborts():
  """Gives the news of a death time to come, and the sentence to be written.

  Where the first process dies, JAX may notice it a moment sooner, and aborts.
  The handler is the C library's `sleep`, which handlers may call; it takes the
  signal's number, 6, for seconds. Then the abort goes on.
  """
  library = ctypes.CDLL(None)
  library.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
  library.signal(signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p))


_watch: Watch | None = None


def begin() -> None:
  """Begins to watch; all processes call it when JAX has brought them together.

  Before they compute or exchange anything, in which they could be left waiting.
  """
  global _watch
  # JAX keeps these to itself. By this address, however it was found, it has
  # reached the first process.
  from jax._src.distributed import global_state

  host = global_state.coordinator_address.rpartition(":")[0].strip("[]")
  process, client = global_state.process_id, global_state.client
  if process == 0:
    token = secrets.token_hex()
    watch = Watch(process, token)

    def excused():
      found = client.key_value_dir_get(_EXCUSED_KEY)
      return {int(key.rpartition("/")[2]) for key, _ in found}

    port = watch.serve(global_state.num_processes, excused)
    client.key_value_set(_KEY, json.dumps([port, token]))
  else:
    milliseconds = int(1000 * _SILENCE)
    port, token = json.loads(client.blocking_key_value_get(_KEY, milliseconds))
    watch = Watch(process, token)
    try:
      watch.join(host, port)
    except OSError as error:
      _logger.warning(
        "process 0 cannot be reached at %s, port %d (%s): should a process die,"
        " this one ends when JAX notices, minutes later",
        *(host, port, shorten(error)),
      )
      client.key_value_set(f"{_EXCUSED_KEY}/{process}", "")
      return
  _delay_aborts()
  _watch = watch


def note(**facts: Any) -> None:
  """What this process does, see `Watch.note`, for others to say if it dies."""
  if _watch:
    _watch.note(**facts)


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
  """Notes what is done within it, and after an error too."""
  note(doing=what)
  yield
  note(doing="")


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Within it, the end of one process is the end of all."""
  try:
    yield
  except BaseException as error:
    code = error.code if isinstance(error, SystemExit) else 1
    if _watch and code:
      time.sleep(_NEWS)
      is_number = isinstance(code, int)
      if isinstance(error, SystemExit):
        reason = f"exit code {code}" if is_number else code
      elif isinstance(error, InputError):
        reason = str(error)
      else:
        reason = f"{type(error).__name__}: {shorten(error)}"
      _watch.fail(reason, code if is_number else 1)
    raise
  finally:
    if _watch and not _watch.is_over:
      _watch.finish()
