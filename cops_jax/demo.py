"""A web page that finds anomalies in the images dropped on it.

  python -m cops_jax.demo --workdir=runs/visa
  python -m cops_jax.demo

Without --workdir it uses the toy CLIP, and prompts that configs/demo.py trained
with seed 0; `cops_jax.calibrate --data=demo_unseen` chose their thresholds.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import socket
from collections.abc import Sequence
from typing import Any

import numpy as np

from cops_jax import thresholds
from cops_jax.clip_files import DEMO_CLIP
from cops_jax.commands import add_allow_other_clip, command_line
from cops_jax.detector import AnomalyDetector
from cops_jax.errors import InputError

_LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_PROMPTS = pathlib.Path(__file__).parent / "assets" / "demo_prompts"


def load_detector(
  workdir: str | None = None, *, allow_other_clip: bool = False
) -> AnomalyDetector:
  """A run's detector, or the embedded default's.

  Args:
    workdir: of a training run.
    allow_other_clip: whether other CLIP weights will do than the run's own.

  Raises:
    InputError: there is no run, or its CLIP is not to be had.
  """
  if workdir:
    return AnomalyDetector.from_workdir(
      workdir, allow_other_clip=allow_other_clip
    )
  return AnomalyDetector.from_files(
    DEMO_CLIP,
    _PROMPTS / "prompts.safetensors",
    thresholds=thresholds.read_thresholds(_PROMPTS),
  )


def _describe(detector, workdir):
  prompts = f"Prompts of {workdir}" if workdir else "The embedded prompts"
  chosen = detector.thresholds
  verdicts = (
    f"Verdicts: {chosen.method}."
    if chosen
    else "No thresholds were chosen for them yet: set the sliders."
  )
  return f"{prompts}, on CLIP {detector.config.clip.weights!r}. {verdicts}"


def _listen(host, port):
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  try:
    return socket.create_server((host, port), family=family)
  except OSError as error:
    raise InputError(
      f"{host}:{port} cannot be served: {error.strerror}. Choose another --port"
      " or --host."
    ) from error


def make_server(app: Any) -> Any:
  """A uvicorn.Server of an ASGI app, for its `run`."""
  import uvicorn

  config = uvicorn.Config(
    app,
    lifespan="off",
    log_level="warning",
    timeout_graceful_shutdown=5,
    ws="none",
  )
  return uvicorn.Server(config)


def _serve(options):
  try:
    import uvicorn  # noqa: F401

    from cops_jax import demo_server
  except ImportError as error:
    if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn"):
      raise
    raise InputError(
      "the page needs packages that are not installed: pip install --editable"
      " '.[demo]'"
    ) from error
  with _listen(options.host, options.port) as listener:
    detector = load_detector(
      options.workdir, allow_other_clip=options.allow_other_clip
    )
    # Compiles now, so that the first upload does not wait for it.
    detector(np.zeros((8, 8), np.uint8))
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    app = demo_server.make_app(
      detector,
      _describe(detector, options.workdir),
      hosts=_LOCAL_HOSTS if host in _LOCAL_HOSTS else ("*",),
    )
    print(f"http://{host}:{port}  (Ctrl-C ends it)", flush=True)
    make_server(app).run(sockets=[listener])


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m cops_jax.demo",
    description=__doc__.partition("\n")[0],
    allow_abbrev=False,
  )
  parser.add_argument(
    "--workdir", help="of a training run; by default the embedded prompts"
  )
  parser.add_argument(
    "--host",
    default="127.0.0.1",
    help="address to serve on; by default this computer alone reaches it",
  )
  parser.add_argument("--port", type=int, default=8000, help="0: any free one")
  add_allow_other_clip(parser)
  options = parser.parse_args(arguments)
  if not 0 <= options.port < 2**16:
    parser.error(f"--port is {options.port}, expected from 0 to {2**16 - 1}")
  with contextlib.suppress(KeyboardInterrupt):
    _serve(options)


if __name__ == "__main__":
  main()
