"""Serves a web page that finds anomalies in the images dropped on it.

  cops demo --workdir=runs/visa
  cops demo --pretrained=OWNER/visa
  cops demo --clip=openai/clip-vit-large-patch14-336
  cops demo

With --clip hand-written texts take the place of training. Of several models the
page has a choice. Without any it uses the toy CLIP, with prompts that the
recipe demo trained with seed 0, whose thresholds `cops calibrate
--data=demo_unseen` chose, and with hand-written ones.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

from cops_jax.commands import command_line, flags, make_parser
from cops_jax.errors import InputError

_LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")


def _load_models(options):
  """Detectors and what the page says about each."""
  from cops_jax.demo import load_detector
  from cops_jax.detector import AnomalyDetector
  from cops_jax.weights.clip import DEMO_CLIP

  models, clip = [], options.clip
  for names, load in (
    (options.workdir, AnomalyDetector.from_workdir),
    (options.pretrained, AnomalyDetector.from_pretrained),
  ):
    for name in names:
      detector = load(name, allow_other_backbone=options.allow_other_backbone)
      models.append((detector, f"Prompts of {name}"))
  if not models and not clip:
    models.append((load_detector(), "The embedded prompts"))
    clip = DEMO_CLIP
  if clip:
    detector = AnomalyDetector.from_clip(
      clip, normal=options.normal, anomalous=options.anomalous
    )
    models.append((detector, "Hand-written prompts"))
  return [
    (
      detector,
      f"{prompts}, on CLIP {detector.config.backbone.weights!r}."
      f" {_tell(detector.thresholds)}",
    )
    for detector, prompts in models
  ]


def _tell(thresholds):
  if not thresholds:
    return (
      "No thresholds were chosen for them: there are no verdicts until a slider"
      " is moved."
    )
  parts = []
  for row in thresholds:
    errors = [f"{name}: {count}" for name, count in row.errors.items()]
    parts.append("; ".join([row.method, *errors]))
  return f"Thresholds: {'. '.join(parts)}."


def _listen(host, port):
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  try:
    return socket.create_server((host, port), family=family)
  except (OSError, OverflowError) as error:
    reason = getattr(error, "strerror", None) or error
    raise InputError(
      f"{host}:{port} cannot be served: {reason}. Choose another --port or"
      " --host."
    ) from error


def _serve(options):
  import numpy as np

  from cops_jax.demo.server import make_app, make_server

  with _listen(options.host, options.port) as listener:
    models = _load_models(options)
    # Compiles now, so that the first upload does not wait for it.
    models[0][0](np.zeros((8, 8), np.uint8))
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    hosts = _LOCAL_HOSTS if host in _LOCAL_HOSTS else ("*",)
    app = make_app(models, hosts=hosts)
    print(f"http://{host}:{port}  (Ctrl-C ends it)", flush=True)
    make_server(app).run(sockets=[listener])


def _parser():
  parser = make_parser("demo", __doc__)
  repeated = dict(action="append", default=[])
  flags.add(parser, "--workdir", "--pretrained", **repeated)
  flags.add(
    parser, "--clip", "--normal", "--anomalous", "--allow_other_backbone"
  )
  parser.add_argument(
    "--host",
    default="127.0.0.1",
    help="address to serve on; by default this computer alone reaches it",
  )
  parser.add_argument("--port", type=int, default=8000, help="0: any free one")
  return parser


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
  parser = _parser()
  options = parser.parse_args(arguments)
  flags.require_clip_for_texts(parser, options)
  _serve(options)
