"""The web page in a browser."""

import csv
import io
import json
import signal

import numpy as np
import pytest
from PIL import Image

from cops_jax.demo.server import _draw_examples
from cops_jax.images.drawing import overlay
from cops_jax.thresholds import find_boxes
from helpers import demo_pages
from helpers.demo_pages import black, post, until
from helpers.scripts import start_afresh

detector, port = demo_pages.detector, demo_pages.port  # Fixtures.


@pytest.fixture(scope="module")
def address():
  """Of the command without arguments, which Ctrl-C ends."""
  with start_afresh("-m", "cops_jax.demo", "--port=0") as process:
    line = process.stdout.readline()
    yield line.split()[0]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err


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
def test_ten_images_at_once_and_the_sliders(address, browser, images, width):
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


def test_bad_files_do_not_affect_the_others(address, browser, images, tmp_path):
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
  assert "<b>broken.jpg is not an image in one of PNG" in texts
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
  assert page.one("#image_value").text == "not set"
  page.upload(path)
  page.count(scored=1, anomaly=0, normal=0)
  (card,) = page.cards()
  score = f"score {want.image_score:.3f}"
  assert card["text"].splitlines() == [
    path.name,
    "\N{MULTIPLICATION SIGN}",
    score,
    "PNG",
  ]
  assert page.one("#status").text == "1 image"
  assert page.outlined() == [0]
  # Each slider brings what it decides.
  page.one("#pixel").send_keys("\ue011")
  until(lambda: "1 region" in page.cards()[0]["text"])
  page.count(scored=1)
  page.one("#image").send_keys("\ue011")
  page.count(anomaly=1, scored=0)
  page.one("#reset").click()
  page.count(scored=1, anomaly=0)
  assert page.outlined() == [0] and page.errors() == []


def test_a_choice_of_methods(address, browser, images):
  """The command without arguments has two; the choice is in the address."""
  page = Page(browser, address, 390)
  options = [option.text for option in page.all("#model option")]
  assert options == ["CoPS", "Prompt ensemble"]
  assert page.one("#choice").is_displayed()
  about = page.one("#about").text
  page.all("#model option")[1].click()
  until(lambda: browser.current_url.endswith("?model=1"))
  until(lambda: page.all("#all_examples"))
  assert page.one("#model").get_attribute("value") == "1"
  assert "Hand-written prompts" in page.one("#about").text != about
  assert page.run("return document.body.scrollWidth") <= 390
