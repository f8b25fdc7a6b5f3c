"""The web page: its server over HTTP, and the whole in a browser."""

import base64
import contextlib
import csv
import functools
import http.client
import io
import json
import re
import signal
import socket
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from cops_jax import demo
from cops_jax.demo.__main__ import _LOCAL_HOSTS, main
from cops_jax.demo.server import Limits, _draw_examples, make_app
from cops_jax.images.drawing import overlay
from cops_jax.thresholds import find_boxes
from helpers.images import make_image
from helpers.scripts import start


@pytest.fixture(scope="module")
def detector():
  return demo.load_detector()


@contextlib.contextmanager
def serve(detector, hosts=("*",), **limits):
  """Gives the port."""
  app = make_app(detector, "a <model>", Limits(**limits), hosts)
  server = demo.make_server(app)
  with socket.create_server(("127.0.0.1", 0)) as listener:
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
      yield listener.getsockname()[1]
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


def to_bytes(image, kind="PNG", **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def from_data_url(text):
  return Image.open(io.BytesIO(base64.b64decode(text.partition(",")[2])))


def test_an_image_gets_what_the_detector_says(detector, port):
  content = to_bytes(make_image(0, 1400, 900), "JPEG")
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


def test_photographs_are_turned_upright(detector, port):
  upright = make_image(0, 60, 90)
  exif = Image.Exif()
  exif[0x112] = 6  # Turn it clockwise.
  lying = to_bytes(upright.transpose(Image.Transpose.ROTATE_90), exif=exif)
  status, answer = post(port, lying)
  assert status == 200 and (answer["width"], answer["height"]) == (60, 90)
  assert answer["image_score"] == round(detector(upright).image_score, 6)


def test_a_name_that_is_not_the_servers_is_refused(detector):
  with serve(detector, hosts=_LOCAL_HOSTS) as port:
    for host, status in (
      (f"127.0.0.1:{port}", 200),
      (f"localhost:{port}", 200),
      (f"[::1]:{port}", 200),
      ("elsewhere.example", 400),
      (f"127.0.0.1.elsewhere.example:{port}", 400),
    ):
      response, _ = ask(port, "GET", "/api/info", headers={"Host": host})
      assert response.status == status, host


def test_what_is_shown_is_what_was_looked_at(detector, port):
  grey = make_image(0, mode="L")
  deep = Image.fromarray(np.asarray(grey).astype(np.uint16) << 8)
  clear = make_image(0, mode="RGBA")
  clear.putalpha(0)
  for image, seen in ((deep, grey), (clear, Image.new("RGB", clear.size))):
    status, answer = post(port, to_bytes(image))
    assert status == 200
    assert answer["image_score"] == round(detector(seen).image_score, 6)
    with from_data_url(answer["image"]) as shown:
      np.testing.assert_allclose(
        np.asarray(shown, int), np.asarray(seen.convert("RGB"), int), atol=40
      )


@functools.cache
def black(width, height):
  return to_bytes(Image.new("1", (width, height)))


@pytest.mark.parametrize(
  "content, status, expected",
  (
    (b"", 415, "photo.png is no image in one of PNG"),
    (b"no image", 415, "photo.png is no image in one of PNG"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n", 415, "photo.png is no image"),
    (to_bytes(make_image(0))[:300], 422, "photo.png cannot be read: .*trunc"),
    (b"\0" * 300_001, 413, "photo.png is too large: at most 0.286"),
    (
      to_bytes(Image.fromarray(np.zeros((9, 9), np.int32)), "TIFF"),
      *(422, "photo.png cannot be read: .*expected 8 or 16 bits"),
    ),
    (black(8000, 5001), 413, "photo.png has too many pixels: at most 40 mil"),
    (black(10_000, 9000), 413, "photo.png has too many pixels"),
    (black(20_000, 10_000), 413, "photo.png has too many pixels"),
  ),
  ids=(
    "empty",
    "text",
    "eps",
    "half",
    "large",
    "32 bits",
    "40",
    "warning",
    "error",
  ),
)
def test_bad_uploads_get_a_sentence(port, content, status, expected):
  got, answer = post(port, content)
  assert (got, list(answer)) == (status, ["error"])
  assert re.match(expected, answer["error"])


def test_uploads_of_unknown_length_are_cut_off(port):
  status, answer = post(
    port,
    iter([b"\0" * 100_000] * 4),
    headers={"Transfer-Encoding": "chunked"},
    encode_chunked=True,
  )
  assert status == 413 and "too large" in answer["error"]


@pytest.mark.parametrize(
  "method, path, status",
  (
    ("GET", "/api/detect", 405),
    ("POST", "/api/info", 405),
    ("GET", "/api/examples/none.png", 404),
    ("GET", "/none", 404),
    ("GET", "/../demo_server.py", 404),
  ),
)
def test_other_requests(port, method, path, status):
  response, content = ask(port, method, path)
  assert response.status == status and list(json.loads(content)) == ["error"]


def test_the_page_comes_with_a_policy(port):
  for path in ("/", "/page.js", "/api/info"):
    response, content = ask(port, "GET", path)
    assert response.status == 200 and content
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; ")
    assert "unsafe" not in policy and "http" not in policy
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "//" not in re.sub(r"(?m)(^|\s)//.*", "", content.decode())


def test_a_failure_of_the_server_is_no_traceback(detector, port, monkeypatch):
  def fail(images):
    raise RuntimeError("out of memory")

  monkeypatch.setattr(detector, "detect", fail)
  response, content = ask(port, "POST", "/api/detect", to_bytes(make_image(0)))
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


def until(condition, seconds=20):
  end = time.monotonic() + seconds
  while not (value := condition()):
    assert time.monotonic() < end, "waited too long"
    time.sleep(0.02)
  return value


def test_no_more_uploads_at_a_time_than_said(detector):
  content = to_bytes(make_image(0))
  with serve(detector, max_requests=2) as port:
    with begin_upload(port, len(content)) as first:
      with begin_upload(port, len(content)):
        until(lambda: post(port, content)[0] == 503)
        response, refusal = ask(port, "POST", "/api/detect", content)
        assert response.status == 503 and response.headers["Retry-After"] == "1"
        assert "2 images are being looked at" in json.loads(refusal)["error"]
      # One has gone away: its place is free.
      until(lambda: post(port, content)[0] == 200)
      first.sendall(content)
      assert first.recv(15) == b"HTTP/1.1 200 OK"


def test_an_upload_that_stalls_is_ended(detector):
  with serve(detector, max_seconds=0.1) as port:
    with begin_upload(port, 100) as link, http.client.HTTPResponse(link) as got:
      got.begin()
      assert got.status == 408
      answer = json.loads(got.read())
      assert answer["error"] == "slow.png did not arrive within 0.1 seconds"


@pytest.mark.parametrize(
  "arguments, expected",
  (
    (["--workdir={folder}"], "error: .* holds no training run"),
    (["--port={port}"], "error: 127.0.0.1:{port} cannot be served: .*--port"),
    (["--host=no.such.invalid"], "error: no.such.invalid:8000 cannot be"),
  ),
)
def test_what_ends_the_command(port, tmp_path, arguments, expected):
  names = {"port": port, "folder": tmp_path}
  if "folder" in arguments[0]:
    arguments = ["--port=0", *arguments]
  with pytest.raises(SystemExit, match=expected.format(**names)) as error:
    main([text.format(**names) for text in arguments])
  assert "\n" not in str(error.value)


def test_without_the_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, "uvicorn", None)
  with pytest.raises(SystemExit, match=r"error: .*pip install.*'\.\[demo\]'"):
    main(["--port=0"])


@pytest.fixture(scope="module")
def address():
  """Of the command without arguments, which Ctrl-C ends."""
  with start("-m", "cops_jax.demo", "--port=0") as process:
    line = process.stdout.readline()
    yield line.split()[0]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0 and "Traceback" not in err


class Page:
  """The page in a browser."""

  def __init__(self, browser, address, width):
    # Windows have a least width; the page's own can be any.
    browser.execute_cdp_cmd(
      "Emulation.setDeviceMetricsOverride",
      {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": True},
    )
    self.browser = browser
    browser.get(address)
    until(lambda: self.all("#all_examples"))

  def all(self, selector):
    return self.browser.find_elements("css selector", selector)

  def one(self, selector):
    (element,) = self.all(selector)
    return element

  def run(self, script, *arguments):
    return self.browser.execute_script(script, *arguments)

  def count(self, **numbers):
    """Waits for these numbers of cards: anomaly, normal, failed."""
    found = {}

    def is_so():
      for kind in numbers:
        found[kind] = len(self.all(f"li.{kind}"))
      return found == numbers

    until(is_so)

  def cards(self):
    """By card its text and its pictures' widths in pixels."""
    return self.run(
      "return [...document.querySelectorAll('#list li')].map((card) => ({"
      "  text: card.innerText,"
      "  pictures: [...card.querySelectorAll('.tile')].map("
      "    (tile) => tile.clientWidth),"
      "}));"
    )

  def outlined(self):
    """By card the pixels of outlines that are drawn."""
    return self.run(
      "return [...document.querySelectorAll('.outline')].map((canvas) =>"
      "  canvas.getContext('2d').getImageData(0, 0, canvas.width,"
      "    canvas.height).data.filter((value, i) => i % 4 === 3 && value)"
      "    .length);"
    )

  def upload(self, *paths):
    self.one("#files").send_keys("\n".join(map(str, paths)))

  def fits(self):
    return self.run(
      "return document.documentElement.scrollWidth <= window.innerWidth"
    )

  def errors(self):
    """Less the statuses of refused uploads, and what `outlined` costs."""
    return [
      entry
      for entry in self.browser.get_log("browser")
      if entry["source"] not in ("network", "rendering")
    ]


@pytest.fixture(scope="module")
def images(detector, tmp_path_factory):
  """Ten image files, and what the detector finds in each."""
  folder = tmp_path_factory.mktemp("images")
  drawn = list(_draw_examples().values())
  paths = [folder / f"{index}.png" for index in range(9)]
  paths.append(folder / "=1,2.png")
  for index, path in enumerate(paths):
    path.write_bytes(drawn[index % len(drawn)])
  return {path: detector(path) for path in paths}


@pytest.mark.parametrize("width", (1280, 390))
def test_ten_at_once_and_the_sliders(address, browser, images, width):
  page = Page(browser, address, width)
  assert "is a toy" in page.one("#toy").text
  assert page.fits() and page.one("#status").text == "No images yet"
  num_anomalies = sum(want.is_anomaly for want in images.values())
  assert 0 < num_anomalies < 10
  page.upload(*images)
  page.count(anomaly=num_anomalies, normal=10 - num_anomalies, failed=0)
  assert page.fits()
  assert page.one("#status").text == (
    f"10 images \N{MIDDLE DOT} {num_anomalies} anomalous \N{MIDDLE DOT}"
    f" {10 - num_anomalies} normal"
  )
  for (path, want), card in zip(images.items(), page.cards(), strict=True):
    assert card["text"].startswith(path.name)
    assert f"score {want.image_score:.3f}" in card["text"]
    assert ("anomaly" if want.is_anomaly else "normal") in card["text"]
    left, right = card["pictures"]
    assert left == right and 100 < left < width / 2
  # The keys' names are those of WebDriver: Home and End.
  page.one("#image").send_keys("\ue011")
  page.count(anomaly=10, normal=0)
  page.one("#image").send_keys("\ue010")
  page.count(anomaly=0, normal=10)
  page.one("#pixel").send_keys("\ue011")
  until(lambda: all("1 region" in card["text"] for card in page.cards()))
  assert all(page.outlined())
  page.one("#pixel").send_keys("\ue010")
  until(lambda: all("no regions" in card["text"] for card in page.cards()))
  assert not any(page.outlined())
  page.one("#opacity").send_keys("\ue011")
  until(lambda: page.one("#opacity_value").text == "0%")
  assert page.all(".heat")[0].value_of_css_property("opacity") == "0"
  page.one("#reset").click()
  page.count(anomaly=num_anomalies, normal=10 - num_anomalies)
  shot = Image.open(io.BytesIO(browser.get_screenshot_as_png()))
  assert len(shot.convert("RGB").getcolors(2**24)) > 50
  page.all(".remove")[0].click()
  assert len(page.all("li")) == 9
  page.one("#clear").click()
  assert not page.all("li") and page.errors() == []


def test_downloads(address, browser, detector, images, tmp_path):
  page = Page(browser, address, 1280)
  browser.execute_cdp_cmd(
    "Browser.setDownloadBehavior",
    {"behavior": "allow", "downloadPath": str(tmp_path)},
  )

  def downloaded(name):
    path = tmp_path / name
    until(lambda: path.exists() and path.stat().st_size)
    return path

  paths, wanted = list(images)[-2:], list(images.values())[-2:]
  page.upload(*paths)
  until(lambda: len(page.all("li.anomaly, li.normal")) == 2)
  page.one("#json").click()
  rows = json.loads(downloaded("results.json").read_text())
  for row, path, want in zip(rows, paths, wanted, strict=True):
    assert row == {
      "path": path.name,
      "image_score": round(want.image_score, 6),
      "verdict": "anomaly" if want.is_anomaly else "normal",
      "threshold": want.thresholds.image,
      "threshold_method": want.thresholds.method,
      "pixel_threshold": want.thresholds.pixel,
      "boxes": [list(box) for box in want.boxes],
    }
  # By another threshold, boxes are the page's own.
  page.one("#pixel").send_keys("\ue012")
  page.one("#image").send_keys("\ue010")
  until(lambda: page.one("#image_value").text == "1.000")
  page.one("#csv").click()
  text = downloaded("results.csv").read_text()
  rows = list(csv.DictReader(io.StringIO(text)))
  assert [row["verdict"] for row in rows] == ["normal", "normal"]
  assert {row["threshold_method"] for row in rows} == {"slider"}
  assert rows[1]["path"] == "'=1,2.png"
  threshold = float(rows[0]["pixel_threshold"])
  assert 0 < threshold != detector.thresholds.pixel
  for row, want in zip(rows, wanted, strict=True):
    boxes = find_boxes(want.anomaly_map, threshold)
    np.testing.assert_allclose(json.loads(row["boxes"]), boxes, atol=2)
  # The picture, without outlines, has the colours of `predict`'s.
  page.one("#pixel").send_keys("\ue010")
  until(lambda: page.one("#pixel_value").text == "1.000")
  page.all(".save")[1].click()
  saved = Image.open(downloaded("=1,2-heatmap.png"))
  with saved, Image.open(paths[1]) as image:
    high = 2 * detector.thresholds.pixel
    expected = overlay(
      np.asarray(image), wanted[1].anomaly_map, 0.0, high
    ).astype(float)
    got = np.asarray(saved.convert("RGB"))
  assert np.abs(got - expected).mean() < 4
  assert np.abs(expected - np.asarray(image)).max() > 50
  assert page.errors() == []


def test_bad_files_leave_the_others_alone(address, browser, images, tmp_path):
  page = Page(browser, address, 390)
  large, broken = tmp_path / "large.png", tmp_path / "<b>broken.jpg"
  with large.open("wb") as file:
    file.truncate(20 * 2**20 + 1)
  broken.write_bytes(b"no image")
  bomb = tmp_path / "bomb.png"
  bomb.write_bytes(black(8000, 5001))
  first, second, *_ = images
  page.upload(first, broken, large, bomb, second)
  until(lambda: len(page.all("li.anomaly, li.normal")) == 2)
  page.count(failed=3)
  texts = "\n".join(card.text for card in page.all("li.failed"))
  assert "<b>broken.jpg is no image in one of PNG" in texts
  assert "large.png has 20.0 MB; at most 20 MB can be sent" in texts
  assert "bomb.png has too many pixels: at most 40 million" in texts
  assert "3 failed" in page.one("#status").text and page.fits()
  # Dropped, and more than the page holds.
  page.run(
    "const data = new DataTransfer();"
    "for (let i = 0; i < 60; i++) data.items.add(new File(['x'], `${i}.png`));"
    "document.dispatchEvent(new DragEvent('drop', {dataTransfer: data}));"
  )
  page.count(failed=48)
  assert "15 of 60 were left out" in page.one("#limits").text
  page.one("#clear").click()
  page.run(
    "const data = new DataTransfer(); data.items.add(new File(['x'], 'p.png'));"
    "const event = new ClipboardEvent('paste', {clipboardData: data});"
    "document.dispatchEvent(event);"
  )
  page.count(failed=1)
  page.one("#clear").click()
  page.all(".example")[0].click()
  until(lambda: len(page.all("li.anomaly, li.normal")) == 1)
  assert page.errors() == []


def test_without_thresholds(browser, detector, port, images, monkeypatch):
  monkeypatch.setattr(detector, "thresholds", None)
  path, want = list(images.items())[1]
  status, answer = post(port, path.read_bytes())
  assert status == 200 and answer["verdict"] is answer["boxes"] is None
  page = Page(browser, f"http://127.0.0.1:{port}", 390)
  assert page.one("#about").text == "a <model>"
  assert page.one("#image_value").text == "0.500"
  page.upload(path)
  page.count(anomaly=want.image_score >= 0.5, normal=want.image_score < 0.5)
  assert page.errors() == []
