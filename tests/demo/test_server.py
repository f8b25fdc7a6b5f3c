"""The web page's server over HTTP, and arguments that end the command."""

import base64
import contextlib
import http.client
import io
import json
import re
import select
import socket
import threading
import urllib.parse
import zlib

import numpy as np
import pytest
from PIL import Image

from cops_jax.commands import demo as command
from cops_jax.datasets import generated
from cops_jax.demo import server
from cops_jax.demo.server import _EXAMPLES
from cops_jax.detector import AnomalyDetector
from helpers import demo_pages
from helpers.demo_pages import ask, black, post, serve, until
from helpers.images import encode, make_image

detector, port = demo_pages.detector, demo_pages.port  # Fixtures.


def from_data_url(text):
  return Image.open(io.BytesIO(base64.b64decode(text.partition(",")[2])))


def test_the_answer_is_the_detection(detector, port):
  content = encode(make_image(0, 1400, 900), "JPEG")
  status, answer = post(port, content)
  assert status == 200
  want = detector(content)
  assert answer["path"] == "photo.png"
  assert answer["image_score"] == round(want.image_score, 6)
  assert answer["verdict"] == ("anomaly" if want.is_anomaly else "normal")
  assert answer["threshold"] == want.thresholds.image
  assert [tuple(box) for box in answer["boxes"]] == want.boxes
  assert (answer["width"], answer["height"]) == (1400, 900)
  with from_data_url(answer["image"]) as shown:
    assert shown.size == (1024, 658)
  with from_data_url(answer["map"]) as levels:
    assert levels.size == (512, 329) and levels.mode == "L"
    got = np.asarray(levels) / 255 * answer["map_max"]
  small = Image.fromarray(want.anomaly_map).resize((512, 329))
  np.testing.assert_allclose(got, small, atol=0.02 * answer["map_max"])


def test_each_model_has_its_own_scores_and_thresholds(detector):
  """The first model is the default."""
  other = AnomalyDetector.from_clip("demo")
  content = encode(make_image(0))
  others = [(other, "by hand"), (other, "again")]
  with serve(detector, others=others) as port:
    found = [
      json.loads(ask(port, "GET", f"/api/info?model={number}")[1])
      for number in range(3)
    ]
    assert [info["model"] for info in found] == [0, 1, 2]
    for info in found:
      assert info["models"] == [
        "CoPS",
        *(f"Prompt ensemble {n}" for n in (1, 2)),
      ]
    assert found[0]["thresholds"] and found[1]["thresholds"] is None
    assert (found[0]["about"], found[1]["about"]) == ("a <model>", "by hand")
    _, first = post(port, content)
    _, second = post(port, content, "photo.png&model=1")
    assert first["image_score"] == round(detector(content).image_score, 6)
    assert second["image_score"] == round(other(content).image_score, 6)
    assert first["image_score"] != second["image_score"]
    for number in ("3", "-1", "x"):
      response, body = ask(port, "GET", f"/api/info?model={number}")
      assert response.status == 404
      assert json.loads(body) == {"error": f"there is no model {number}"}


def test_the_shown_image_is_what_the_detector_scored(detector, port):
  """Tests images of 16 bits, transparent images and rotated photographs."""
  grey = make_image(0, mode="L")
  deep = Image.fromarray(np.asarray(grey).astype(np.uint16) << 8)
  clear = make_image(0, mode="RGBA")
  clear.putalpha(0)
  upright, exif = make_image(0, 60, 90), Image.Exif()
  exif[0x112] = 6  # The orientation tag: turn the image clockwise.
  lying = upright.transpose(Image.Transpose.ROTATE_90)
  for content, seen in (
    (encode(deep), grey),
    (encode(clear), Image.new("RGB", clear.size, "white")),
    (encode(lying, exif=exif), upright),
  ):
    status, answer = post(port, content)
    assert status == 200 and (answer["width"], answer["height"]) == seen.size
    assert answer["image_score"] == round(detector(seen).image_score, 6)
    with from_data_url(answer["image"]) as shown:
      np.testing.assert_allclose(
        np.asarray(shown, int), np.asarray(seen.convert("RGB"), int), atol=40
      )


@pytest.mark.parametrize(
  "content, status, expected",
  (
    (b"", 422, "photo.png cannot be read: it is empty"),
    (b"no image", 422, "photo.png cannot be read: it is not a valid image"),
    (encode(make_image(0))[:300], 422, "photo.png cannot be read: .*trunc"),
    (b"\0" * 300_001, 413, "photo.png is too large: the limit is 0.286"),
    (
      encode(np.zeros((9, 9), np.int32), "TIFF"),
      *(422, "photo.png cannot be read: .*32-bit integers, which"),
    ),
    (black(8000, 6251), 422, "photo.png .* more than 50 million pixels"),
    (black(8160, 6120)[:999], 422, "photo.png cannot be read: .*truncated"),
  ),
  ids=("empty", "text", "half", "large", "32 bits", "50", "a phone's"),
)
def test_bad_uploads_get_an_error_message(port, content, status, expected):
  got, answer = post(port, content)
  assert (got, list(answer)) == (status, ["error"])
  assert re.match(expected, answer["error"])


def test_an_image_of_a_closed_connection_is_not_scored(detector, monkeypatch):
  """The page closes connections when the user chooses another method."""
  content = encode(make_image(0))
  detect, seen, is_due = detector.detect, [], threading.Event()

  def wait(images):
    seen.append(1)
    is_due.wait()
    return detect(images)

  monkeypatch.setattr(detector, "detect", wait)
  with serve(detector, max_requests=2) as port:
    with contextlib.ExitStack() as stack:
      for _ in range(2):
        stack.enter_context(begin_upload(port, len(content))).sendall(content)
        until(lambda: len(seen) == 1)
      until(lambda: post(port, content)[0] == 503)
    is_due.set()
    until(lambda: post(port, content)[0] == 200)
    assert len(seen) == 2


def test_uploads_of_unknown_length_are_limited(port):
  chunks = iter([b"\0" * 100_000] * 4)
  status, answer = post(port, chunks)
  assert status == 413 and "too large" in answer["error"]


def test_the_page_has_a_content_security_policy(port):
  scripts = ("/page.js", "/card.js", "/drawing.js")
  for path in ("/", "/page.css", *scripts, "/api/info"):
    response, content = ask(port, "GET", path)
    assert response.status == 200 and content
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; ")
    assert "unsafe" not in policy and "http" not in policy
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "//" not in re.sub(r"(?m)(^|\s)//.*", "", content.decode())


def test_the_truth_about_examples_follows_from_their_masks(port):
  truths = json.loads(ask(port, "GET", "/api/info")[1])["examples"]
  assert list(truths) == list(_EXAMPLES)
  for name, (category, defect) in _EXAMPLES.items():
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    pixels, mask = generated.generate(category, defect, rng, 224)
    assert truths[name] == ("anomaly" if mask.any() else "normal")
    _, content = ask(port, "GET", f"/api/examples/{name}")
    with Image.open(io.BytesIO(content)) as image:
      np.testing.assert_array_equal(image, pixels)


def test_a_failure_of_the_server_shows_no_traceback(
  detector, port, monkeypatch
):
  def fail(images):
    raise RuntimeError("out of memory")

  monkeypatch.setattr(detector, "detect", fail)
  response, content = ask(port, "POST", "/api/detect", encode(make_image(0)))
  assert response.status == 500 and b"memory" not in content
  assert "the server failed" in json.loads(content)["error"]
  assert response.headers["X-Content-Type-Options"] == "nosniff"


def begin_upload(port, length):
  link = socket.create_connection(("127.0.0.1", port), timeout=60)
  link.sendall(
    b"POST /api/detect?name=slow.png HTTP/1.1\r\nHost: a\r\n"
    b"Content-Length: %d\r\n\r\n" % length
  )
  return link


def test_concurrent_uploads_are_limited(detector):
  content = encode(make_image(0))
  with serve(detector, max_uploads=2) as port:
    with begin_upload(port, len(content)) as first:
      with begin_upload(port, len(content)):
        until(lambda: post(port, content)[0] == 503)
        response, refusal = ask(port, "POST", "/api/detect", content)
        assert response.status == 503 and response.headers["Retry-After"] == "1"
        assert "is processing 2 uploads" in json.loads(refusal)["error"]
      # The second upload was closed, so another one is accepted.
      until(lambda: post(port, content)[0] == 200)
      first.sendall(content)
      assert first.recv(15) == b"HTTP/1.1 200 OK"


def test_idle_connections_are_limited_and_closed(detector, monkeypatch):
  """After that, the server answers again."""
  monkeypatch.setattr(server, "_MAX_CONNECTIONS", 5)
  monkeypatch.setattr(server, "_REQUEST_SECONDS", 2.0)
  with serve(detector) as port, contextlib.ExitStack() as stack:
    links = [
      stack.enter_context(socket.create_connection(("127.0.0.1", port)))
      for _ in range(9)
    ]
    for link in links:
      with contextlib.suppress(OSError):
        link.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")

    def count_open():
      return len(links) - len(select.select(links, [], [], 0)[0])

    until(lambda: count_open() == 5, seconds=1.8)
    until(lambda: count_open() == 0)
    assert ask(port, "GET", "/")[0].status == 200


@pytest.mark.parametrize("limit", ("max_seconds", "max_pause_seconds"))
def test_an_upload_that_stalls_is_ended(detector, limit):
  with serve(detector, **{limit: 0.1}) as port:
    with begin_upload(port, 100) as link, http.client.HTTPResponse(link) as got:
      got.begin()
      assert got.status == 408
      answer = json.loads(got.read())
      assert "the upload of slow.png took longer" in answer["error"]


def test_requests_from_other_sites_are_refused(detector, port):
  content = encode(make_image(0))
  for origin, status in (
    (f"http://127.0.0.1:{port}", 200),
    ("http://evil.example", 403),
    ("null", 403),
  ):
    response, _ = ask(
      port, "POST", "/api/detect", content, headers={"Origin": origin}
    )
    assert response.status == status


def test_a_refused_upload_gets_its_message(detector):
  """The client sends the whole upload before it reads the answer."""
  with serve(detector, max_bytes=2**20) as port:
    response, answer = ask(port, "POST", "/api/detect", bytes(4 * 2**20))
    assert response.status == 413
    assert "the limit is 1 MB" in json.loads(answer)["error"]


def test_the_page_is_served_while_the_model_loads(
  detector, monkeypatch, capsys
):
  """It is served on all addresses, one of which a phone can open."""
  servers, is_due, make_server = [], threading.Event(), server.make_server

  def make(app):
    servers.append(make_server(app))
    return servers[0]

  def load(options):
    is_due.wait()
    return [(detector, "a model")]

  monkeypatch.setattr(server, "make_server", make)
  monkeypatch.setattr(command, "_load_models", load)
  monkeypatch.setattr(command, "_find_network_address", lambda _: "127.0.0.2")
  arguments = (["--host=0.0.0.0", "--port=0"],)
  thread = threading.Thread(target=command.main, args=arguments)
  thread.start()
  try:
    until(lambda: servers and servers[0].started)
    urls = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    hosts = [urllib.parse.urlsplit(url) for url in urls]
    assert [host.hostname for host in hosts] == ["127.0.0.1", "127.0.0.2"]
    port = hosts[0].port
    for host in hosts:  # Browsers send this Host header.
      headers = {"Host": host.netloc}
      assert ask(port, "GET", "/", headers=headers)[0].status == 200
    for way, path in (("GET", "/api/info"), ("POST", "/api/detect")):
      response, body = ask(port, way, path)
      assert response.status == 503 and response.headers["Retry-After"] == "1"
      assert "the model is loading" in json.loads(body)["error"]
    is_due.set()
    until(lambda: ask(port, "GET", "/api/info")[0].status == 200)
  finally:
    is_due.set()
    servers[0].should_exit = True
    thread.join()


def test_help_names_the_port(capsys):
  with pytest.raises(SystemExit):
    command.main(["--help"])
  assert "default: 8000" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
  "arguments, expected",
  (
    (["--workdir={folder}"], "error: .* holds no training run"),
    (["--port={port}"], "error: cannot serve on 127.0.0.1:{port}: .*--port"),
    (
      ["--host=no.such.invalid"],
      "error: cannot serve on no.such.invalid:",
    ),
  ),
)
def test_bad_arguments_end_the_command(port, tmp_path, arguments, expected):
  names = {"port": port, "folder": tmp_path}
  if "folder" in arguments[0]:
    arguments = ["--port=0", *arguments]
  with pytest.raises(SystemExit, match=expected.format(**names)) as error:
    command.main([text.format(**names) for text in arguments])
  assert "\n" not in str(error.value)
