"""Serves a web page that finds anomalies in images dropped on it.

  cops demo --workdir=runs/visa
  cops demo --pretrained=cops-visa
  cops demo --clip=openai/clip-vit-large-patch14-336
  cops demo

--clip uses hand-written texts instead of trained prompts. If there are several
models, the page offers a choice. Without these flags, the page uses the toy
CLIP in this package, with trained prompts and with hand-written texts. The
trained prompts come from the recipe demo with seed 0, and their thresholds from
`cops calibrate --data=demo_unseen`.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from cops_jax.commands import command_line, flags, make_parser
from cops_jax.errors import InputError

_LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1", "[::1]")


def _load_models(options):
  """Returns detectors and their descriptions on the page."""
  import numpy as np

  from cops_jax.demo import load_detector
  from cops_jax.detector import AnomalyDetector
  from cops_jax.images.finding import find_images
  from cops_jax.weights.clip import DEMO_CLIP

  models, clip = [], options.clip
  normal = find_images(options.normal_images)
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
  if normal:
    models = [
      (
        detector.with_normal_images(normal),
        f"{prompts}, with reference images ({len(normal)})",
      )
      for detector, prompts in models
    ]
  # Compiles now, so that the first upload does not wait for it.
  models[0][0](np.zeros((8, 8), np.uint8))
  return [
    (
      detector,
      f"{prompts}, on CLIP {detector.config.backbone.weights!r}."
      f" {_describe(detector.thresholds)}",
    )
    for detector, prompts in models
  ]


def _describe(thresholds):
  if not thresholds:
    return (
      "No thresholds have been chosen for these prompts, so there are no"
      " verdicts until you move a slider."
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
      f"cannot serve on {host}:{port}: {reason}. Choose another --port or"
      " --host."
    ) from error


def _find_network_address(family):
  """Returns this computer's address in its network, or an empty string."""
  # connect() sends nothing; it only selects the address to send from.
  elsewhere = "2001:db8::1" if family == socket.AF_INET6 else "192.0.2.1"
  with socket.socket(family, socket.SOCK_DGRAM) as probe:
    with contextlib.suppress(OSError):
      probe.connect((elsewhere, 9))
      return probe.getsockname()[0]
  return ""


def _print_address(host, port, note):
  host = f"[{host}]" if ":" in host else host
  print(f"http://{host}:{port}  ({note})", flush=True)


def _serve(options):
  with _listen(options.host, options.port) as listener:
    host, port = listener.getsockname()[:2]
    allowed = _LOCAL_HOSTS if host in _LOCAL_HOSTS else ("*",)
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host)
    _print_address(local or host, port, "press Ctrl-C to stop")
    if local and (host := _find_network_address(listener.family)):
      _print_address(host, port, "for a phone in the same network")

    # This import is slow; browsers can connect and wait meanwhile.
    from cops_jax.demo.server import make_app, make_server

    models = ThreadPoolExecutor(1).submit(_load_models, options)
    server = make_server(make_app(models, hosts=allowed))

    def end_if_failed(models):
      server.should_exit = models.exception() is not None

    models.add_done_callback(end_if_failed)
    server.run(sockets=[listener])
    models.result()  # Raises the error that ended the server.


def _parser():
  parser = make_parser("demo", __doc__)
  repeated = dict(action="append", default=[])
  flags.add(parser, "--workdir", "--pretrained", **repeated)
  flags.add(parser, "--clip", "--normal", "--anomalous", "--normal_images")
  flags.add(parser, "--allow_other_backbone")
  parser.add_argument(
    "--host",
    default="127.0.0.1",
    help="serve on this address; 0.0.0.0 also admits other devices in the"
    " network, such as phones; default: %(default)s, this computer only",
  )
  parser.add_argument(
    "--port",
    type=int,
    default=8000,
    help="serve on this port; 0 selects a free one; default: %(default)s",
  )
  return parser


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
  parser = _parser()
  options = parser.parse_args(arguments)
  flags.require_clip_for_texts(parser, options)
  _serve(options)
