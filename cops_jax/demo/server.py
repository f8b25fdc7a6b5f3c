"""The server of the web page, which scores uploaded images.

`POST /api/detect?name=photo.jpg` expects an image file as its body. The answer
is the row that `cops predict` prints for an image, with the image and its
anomaly map for the page. The query field `tiles` has the values of
`cops predict --tiles`. The answer to a failed request is {"error": MESSAGE}.
Its status is 503 while the models are loading.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import pathlib
import urllib.parse
import zlib
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from cops_jax import methods, thresholds
from cops_jax.datasets import generated
from cops_jax.detector import AnomalyDetector
from cops_jax.errors import InputError
from cops_jax.images import read
from cops_jax.images.drawing import heat_colors, to_file
from cops_jax.images.tiles import normalize
from cops_jax.predict import to_row

# Limit of open connections, and seconds within which a request must begin.
_MAX_CONNECTIONS, _REQUEST_SECONDS = 100, 10.0
_PAGE = pathlib.Path(__file__).parent / "page"
# A refused upload is read up to this multiple of `Limits.max_bytes`.
_MAX_DRAINED = 8
_SHOWN_SIDE, _MAP_SIDE = 1024, 512
_HEADERS = {
  "Content-Security-Policy": (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'"
    " data:; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
  ),
  "X-Content-Type-Options": "nosniff",
  "Referrer-Policy": "no-referrer",
  "Cache-Control": "no-cache",
}
# Category and defect of each example. The prompts and the toy CLIP were trained
# on none of these categories. Not every defect is found.
_EXAMPLES = {
  "wood_good.png": ("wood", None),
  "wood_crack.png": ("wood", "crack"),
  "brick_droplet.png": ("brick", "droplet"),
  "knit_cut.png": ("knit", "cut"),
  "hex_nut_good.png": ("hex_nut", None),
  "hex_nut_cut.png": ("hex_nut", "cut"),
  "gear_wrong_patch.png": ("gear", "wrong_patch"),
  "biscuit_stain.png": ("biscuit", "stain"),
}
_EXAMPLE_SIDE = 224


@dataclasses.dataclass(frozen=True)
class Limits:
  """Limits above which the server refuses a request."""

  max_bytes: int = 32 * 2**20  # Size of an upload.
  max_pixels: int = 50_000_000  # Size of an image, checked before decoding.
  max_images: int = 50  # Images on the page.
  max_requests: int = 8  # Images that are waiting or being scored.
  max_uploads: int = 20  # Concurrent uploads.
  max_seconds: float = 100.0  # Duration of an upload.
  max_pause_seconds: float = 5.0  # Duration of a pause in an upload.


def make_app(
  models: Future[Sequence[tuple[AnomalyDetector, str]]],
  limits: Limits | None = None,
  hosts: Sequence[str] = ("*",),
) -> ASGIApp:
  """Returns the page and its API, for any ASGI server.

  Args:
    models: detectors to choose from on the page, each with a description. The
      first is the default. Until the future is done, the page reports that the
      model is loading.
    limits: limits of requests; by default `Limits()`.
    hosts: allowed values of the Host header. Restricting them blocks web sites
      whose domain names resolve to this server (DNS rebinding).
  """
  server = _Server(models, limits or Limits())
  app = Starlette(
    routes=[
      Mount(
        "/api",
        routes=[
          Route("/info", server.info),
          Route("/examples/{name}", server.example),
          Route("/detect", server.detect, methods=["POST"]),
        ],
      ),
      Mount("/", StaticFiles(directory=_PAGE, html=True)),
    ],
    exception_handlers={
      HTTPException: _answer_refusal,
      Exception: _answer_failure,
    },
    middleware=[
      Middleware(
        TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False
      ),
    ],
  )
  return _with_headers(app)  # Outermost, so that failures have headers too.


def make_server(app: ASGIApp) -> uvicorn.Server:
  """Returns a uvicorn server for an ASGI app; call its `run`."""
  config = uvicorn.Config(
    app,
    http=_Connection,
    lifespan="off",
    log_level="warning",
    timeout_graceful_shutdown=5,
    ws="none",
  )
  return uvicorn.Server(config)


class _Connection(H11Protocol):
  """A connection that is closed if there are too many or if it stays idle.

  uvicorn itself waits forever for the rest of a request's headers.
  """

  def connection_made(self, transport):
    super().connection_made(transport)
    if len(self.connections) > _MAX_CONNECTIONS:
      transport.abort()
    self.loop.call_later(_REQUEST_SECONDS, self._require_request, None)

  def _require_request(self, last):
    """Closes the connection if no request has begun since the last check."""
    is_answered = self.cycle is None or self.cycle.response_complete
    if self.cycle is last and is_answered:
      self.transport.abort()
    elif not self.transport.is_closing():
      self.loop.call_later(_REQUEST_SECONDS, self._require_request, self.cycle)


class _Server:
  def __init__(self, models, limits):
    self._models, self._limits = models, limits
    self._examples = _draw_examples()
    self._num = {"uploads": 0, "images": 0}
    self._lock = asyncio.Lock()

  def _choose(self, request):
    """Returns the number of the requested model, and all models."""
    if not self._models.done():
      raise _unavailable("the model is loading. Try again in a few seconds")
    models = self._models.result()
    number = request.query_params.get("model", "0")
    if not number.isdecimal() or int(number) >= len(models):
      raise HTTPException(404, f"there is no model {number}")
    return int(number), models

  async def info(self, request):
    from cops_jax.weights.clip import DEMO_CLIP  # Slow to import.

    (number, models), tiles = self._choose(request), _tiles(request)
    detector, about = models[number]
    rows, chosen = detector.thresholds, detector.thresholds_for(tiles)
    colors = heat_colors(np.linspace(0.0, 1.0, 256)[None], 0.0, 1.0)
    return JSONResponse(
      {
        "about": about,
        "models": _titles([detector for detector, _ in models]),
        "model": number,
        "is_toy": detector.config.backbone.weights == DEMO_CLIP,
        "thresholds": chosen and dataclasses.asdict(chosen),
        "unfit": thresholds.why_unfit(
          rows, (tiles, detector.normal_images_sha256)
        ),
        "limits": dataclasses.asdict(self._limits),
        "examples": {
          name: "anomaly" if defect else "normal"
          for name, (_, defect) in _EXAMPLES.items()
        },
        "colors": colors[0].tolist(),
      }
    )

  async def example(self, request):
    name = request.path_params["name"]
    if name not in self._examples:
      raise HTTPException(404, f"there is no example {name}")
    return Response(self._examples[name], media_type="image/png")

  async def detect(self, request):
    try:
      _require_same_origin(request)
      name = request.query_params.get("name") or "the upload"
      number, models = self._choose(request)
      tiles = _tiles(request)
      with self._reserve("uploads", self._limits.max_uploads):
        content = await self._read(request, name)
      with self._reserve("images", self._limits.max_requests):
        # Limits memory to one decoded image on the host and the device.
        async with self._lock:
          if await request.is_disconnected():
            raise HTTPException(400, f"the request for {name} was cancelled")
          found = await run_in_threadpool(
            self._detect, models[number][0], name, content, tiles
          )
      return JSONResponse(found)
    except HTTPException as error:
      # A client that is still sending would not see the message.
      if error.status_code != 408:
        await self._drain(request)
      raise

  @contextlib.contextmanager
  def _reserve(self, what, most):
    if self._num[what] >= most:
      raise _unavailable(
        f"the server is processing {self._num[what]} {what}, which is the"
        " limit. Try again in a few seconds"
      )
    self._num[what] += 1
    try:
      yield
    finally:
      self._num[what] -= 1

  async def _drain(self, request):
    """Reads and discards the rest of an upload, up to a limit."""
    num_bytes = 0
    with contextlib.suppress(TimeoutError, ClientDisconnect, RuntimeError):
      async with asyncio.timeout(self._limits.max_pause_seconds):
        async for chunk in request.stream():
          num_bytes += len(chunk)
          if num_bytes > _MAX_DRAINED * self._limits.max_bytes:
            return

  async def _read(self, request, name):
    content = bytearray()
    most = self._limits.max_bytes
    too_large = HTTPException(
      413, f"{name} is too large: the limit is {most / 2**20:g} MB"
    )
    length = request.headers.get("Content-Length", "")
    if length.isdecimal() and int(length) > most:
      raise too_large
    chunks = request.stream()
    try:
      async with asyncio.timeout(self._limits.max_seconds):
        while True:
          async with asyncio.timeout(self._limits.max_pause_seconds):
            chunk = await anext(chunks, None)
          if chunk is None:
            return bytes(content)
          content += chunk
          if len(content) > most:
            raise too_large
    except TimeoutError as error:
      raise HTTPException(
        408,
        f"the upload of {name} took longer than {self._limits.max_seconds:g}"
        f" seconds or paused for {self._limits.max_pause_seconds:g} seconds",
      ) from error
    except ClientDisconnect as error:
      raise HTTPException(400, f"the upload of {name} ended early") from error

  def _detect(self, detector, name, content, tiles):
    reading = {**detector.reading, "max_pixels": self._limits.max_pixels}
    try:
      image = read(content, name=name, **reading)
    except InputError as error:
      raise HTTPException(422, str(error)) from error
    decoded = detector.decode(image, tiles=tiles)
    shown = image.image.convert("RGB")
    del image  # Frees memory for the anomaly map, which is as large.
    shown.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    (detection,) = detector.detect([decoded])
    small = Image.fromarray(detection.anomaly_map)
    small.thumbnail((_MAP_SIDE, _MAP_SIDE), Image.Resampling.BILINEAR)
    values = np.asarray(small)
    highest = max(float(values.max()), 1e-6)
    levels = (values / highest * 255).round().astype(np.uint8)
    width, height = decoded.size
    return {
      **to_row(pathlib.Path(name), detection),
      "width": width,
      "height": height,
      "image": _data_url(shown, "jpeg", quality=90),
      "map": _data_url(Image.fromarray(levels), "png"),
      "map_max": highest,  # The value of level 255 in the map.
    }


def _unavailable(why):
  return HTTPException(503, why, {"Retry-After": "1"})


def _tiles(request):
  try:
    return normalize(request.query_params.get("tiles", ""))
  except InputError as error:
    raise HTTPException(400, str(error)) from error


def _titles(detectors):
  """Returns names for the models: their methods, numbered if they repeat."""
  names = [methods.find(row.config.method).TITLE for row in detectors]
  return [
    name
    if names.count(name) == 1
    else f"{name} {names[: place + 1].count(name)}"
    for place, name in enumerate(names)
  ]


def _require_same_origin(request):
  """Refuses requests that pages of other web sites send."""
  origin = request.headers.get("Origin")
  if origin and urllib.parse.urlsplit(origin).netloc != request.url.netloc:
    raise HTTPException(403, f"pages of {origin} cannot send images here")


def _data_url(image: Image.Image, kind: str, **options: Any) -> str:
  text = base64.b64encode(to_file(image, kind, **options)).decode()
  return f"data:image/{kind};base64,{text}"


def _draw_examples():
  examples = {}
  for name, (category, defect) in _EXAMPLES.items():
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    pixels, _ = generated.generate(category, defect, rng, _EXAMPLE_SIDE)
    examples[name] = to_file(Image.fromarray(pixels), "PNG")
  return examples


def _answer_refusal(request, error):
  return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _answer_failure(request, error):
  """Answers without details; starlette raises the error again for the log."""
  return JSONResponse(
    {"error": "the server failed. See its log for the reason"}, 500
  )


def _with_headers(app):
  """Returns the app with headers that block foreign scripts and frames."""

  async def call(scope, receive, send):
    async def send_with_headers(message):
      if message["type"] == "http.response.start":
        MutableHeaders(scope=message).update(_HEADERS)
      await send(message)

    await app(scope, receive, send_with_headers)

  return call
