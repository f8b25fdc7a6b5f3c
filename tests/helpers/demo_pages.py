"""Serves demo pages to tests, and sends requests to them.

A test file uses a fixture of this module by assigning it to a name:
`port = demo_pages.port`.
"""

import contextlib
import functools
import http.client
import json
import socket
import threading
import time
from concurrent.futures import Future

import pytest
from PIL import Image

from cops_jax import demo
from cops_jax.demo.server import Limits, make_app, make_server
from helpers.images import encode


@pytest.fixture(scope="module")
def detector():
  return demo.load_detector()


@contextlib.contextmanager
def serve(detector, others=(), port=0, is_loaded=True, **limits):
  """Yields the port, or (port, load) if the detector is not loaded yet."""
  models = Future()
  load = functools.partial(
    models.set_result, [(detector, "a <model>"), *others]
  )
  if is_loaded:
    load()
  server = make_server(make_app(models, Limits(**limits)))
  with socket.create_server(("127.0.0.1", port)) as listener:
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
      port = listener.getsockname()[1]
      yield port if is_loaded else (port, load)
    finally:
      server.should_exit = True
      thread.join()


@pytest.fixture(scope="module")
def port(detector):
  with serve(detector, max_bytes=300_000) as port:
    yield port


def ask(port, method, path, body=None, **options):
  connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
  with contextlib.closing(connection):
    connection.request(method, path, body, **options)
    response = connection.getresponse()
    return response, response.read()


def post(port, body, name="photo.png", **options):
  response, content = ask(
    port, "POST", f"/api/detect?name={name}", body, **options
  )
  return response.status, json.loads(content)


@functools.cache
def black(width, height):
  return encode(Image.new("1", (width, height)))


def until(condition, seconds=20):
  end = time.monotonic() + seconds
  while not (value := condition()):
    assert time.monotonic() < end, "waited too long"
    time.sleep(0.05)
  return value
