"""The web page in a browser, served by `cops demo`."""

import csv
import io
import json
import re
import signal

import numpy as np
import pytest
from PIL import Image

from cops_jax.demo.server import _draw_examples
from cops_jax.thresholds import find_boxes
from helpers import demo_pages
from helpers.browser import DESKTOP, PHONE, BrowserPage
from helpers.demo_pages import ask, post, until
from helpers.images import make_image
from helpers.scripts import start_afresh

detector, port = demo_pages.detector, demo_pages.port  # Fixtures.

# WebDriver's names of keys.
ENTER, ESCAPE = "\ue007", "\ue00c"
END, HOME, LEFT = "\ue010", "\ue011", "\ue012"
DOT = " \N{MIDDLE DOT} "


@pytest.fixture(scope="module")
def address():
  """Yields the address of `cops demo`, which Ctrl-C ends."""
  with start_afresh("-m", "cops_jax", "demo", "--port=0") as process:
    line = process.stdout.readline()
    yield line.split()[0]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    # The status is 0 if the shell of the tests ignores Ctrl-C.
    assert process.returncode in (130, 0) and "Traceback" not in err


class Page(BrowserPage):
  """The page of `cops demo`, once it is ready."""

  def __init__(self, *arguments):
    super().__init__(*arguments)
    until(lambda: self.all("#page:not(.early), #notice:not([hidden])"), 60)
    self.run(
      "window.announced = [];"
      "const live = document.getElementById('live');"
      "new MutationObserver(() => announced.push(live.textContent))"
      "  .observe(live, {childList: true});"
    )

  def press(self, control, key):
    self.one(f"#{control}").send_keys(key)

  def count(self, **numbers):
    """Waits until there are these numbers of cards of each class."""
    until(
      lambda: all(
        len(self.all(f"li.{kind}")) == number
        for kind, number in numbers.items()
      )
    )

  def wait_for_results(self, number):
    until(lambda: len(self.all("li.anomaly, li.normal")) == number)

  def dispatch(self, kind, event, field, files):
    """Sends an event with files, which are a JavaScript expression."""
    self.run(
      "const data = new DataTransfer();"
      f"for (const file of {files}) data.items.add(file);"
      f"document.dispatchEvent(new {kind}('{event}', {{{field}: data}}));"
    )

  def cards(self):
    return [card.text for card in self.all("#list li")]

  def painted(self, selector):
    """Returns the sum of a canvas's opacities for each card."""
    return self.run(
      "return [...document.querySelectorAll(arguments[0])].map((canvas) =>"
      "  canvas.getContext('2d').getImageData(0, 0, canvas.width,"
      "    canvas.height).data.reduce((sum, value, i) =>"
      "      sum + (i % 4 === 3 ? value : 0), 0));",
      selector,
    )

  def announces(self, text):
    until(lambda: text in self.run("return announced.join(' ')"))

  def upload(self, *paths):
    self.one("#files").send_keys("\n".join(map(str, paths)))

  def is_sound(self):
    """Returns True if the page fits the window and has logged no errors."""
    assert self.fits()
    # Refused uploads and the slow reading of canvases by `painted` are logged.
    expected = ("network", "rendering")
    log = self.browser.get_log("browser")
    return not [entry for entry in log if entry["source"] not in expected]


@pytest.fixture(scope="module")
def images(detector, tmp_path_factory):
  """Returns the detections of ten image files by path."""
  folder = tmp_path_factory.mktemp("images")
  drawn = list(_draw_examples().values())
  paths = [folder / f"{index}.png" for index in range(9)]
  paths.append(folder / "=1,2.png")
  for index, path in enumerate(paths):
    path.write_bytes(drawn[index % len(drawn)])
  return {path: detector(path) for path in paths}


def test_the_command_refuses_foreign_hosts(address):
  port = int(address.rpartition(":")[2])
  for host, status in (
    *(("127.0.0.1", 200), ("localhost", 200), ("[::1]", 200)),
    *(("elsewhere.example", 400), ("127.0.0.1.elsewhere.example", 400)),
  ):
    response, _ = ask(port, "GET", "/", headers={"Host": f"{host}:{port}"})
    assert response.status == status, host


def test_ten_images_get_verdicts_that_follow_the_sliders(
  address, browser, images
):
  page = Page(browser, address, DESKTOP)
  assert "is a toy" in page.text("#toy")
  assert page.text("#status") == "No images yet"
  number = sum(want.is_anomaly for want in images.values())
  assert 0 < number < 10
  page.upload(*images)
  page.count(anomaly=number, normal=10 - number, failed=0)
  parts = ("10 images", f"{number} anomalous", f"{10 - number} normal")
  assert page.text("#status") == DOT.join(parts)
  for (path, want), card in zip(images.items(), page.cards(), strict=True):
    assert card.startswith(path.name)
    assert f"score {want.image_score:.3f}" in card
    assert ("anomaly" if want.is_anomaly else "normal") in card
  page.press("image", HOME)
  page.count(anomaly=10, normal=0)
  page.press("image", END)
  page.count(anomaly=0, normal=10)
  highest = f"{2 * want.thresholds.pixel:.2f}"
  assert page.all(".top")[0].text == highest
  page.press("pixel", HOME)
  until(lambda: all("1 region" in card for card in page.cards()))
  # The whole image is one region, which has no outline.
  assert not any(page.painted(".outline"))
  assert page.all(".top")[0].text == "0.01"
  page.press("pixel", END)
  until(lambda: all("no regions" in card for card in page.cards()))
  assert page.all(".top")[0].text == "1.00"
  page.press("opacity", HOME)
  until(lambda: page.text("#opacity_value") == "0%")
  assert page.all(".heat")[0].value_of_css_property("opacity") == "0"
  page.one("#reset").click()
  page.count(anomaly=number, normal=10 - number)
  page.press("by_score", " ")
  scores = sorted(f"{one.image_score:.3f}" for one in images.values())[::-1]
  shown = [re.search(r"score (\S+)", card)[1] for card in page.cards()]
  assert shown == scores
  page.press("only", " ")
  assert sum(one.is_displayed() for one in page.all("#list li")) == number
  button = page.all("#list .enlarge")[0]
  button.send_keys(ENTER)
  large = page.one("#large")
  assert f"score {scores[0]}" in large.text
  assert large.size["width"] > 1200
  painted = page.painted("#list li:first-child canvas")
  assert all(painted) and painted == page.painted("#large canvas")
  page.browser.switch_to.active_element.send_keys(ESCAPE)
  until(lambda: not large.is_displayed())
  assert page.browser.switch_to.active_element == button
  page.press("only", " ")
  page.all(".remove")[0].click()
  assert len(page.all("li")) == 9
  page.press("clear", ENTER)
  assert not page.all("li") and page.is_sound()


def test_results_and_pictures_can_be_saved(
  address, browser, detector, images, tmp_path
):
  page = Page(browser, address, DESKTOP)
  folder = {"behavior": "allow", "downloadPath": str(tmp_path)}
  page.browser.execute_cdp_cmd("Browser.setDownloadBehavior", folder)

  def downloaded(name):
    path = tmp_path / name
    until(lambda: path.exists() and path.stat().st_size)
    return path

  paths, wanted = list(images)[-2:], list(images.values())[-2:]
  page.upload(*paths)
  page.wait_for_results(2)
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
  # The page computes the boxes of other thresholds itself.
  page.press("pixel", LEFT)
  page.press("image", END)
  until(lambda: page.text("#image_value") == "1.000")
  page.one("#csv").click()
  text = downloaded("results.csv").read_text()
  rows = list(csv.DictReader(io.StringIO(text)))
  assert [row["verdict"] for row in rows] == ["normal", "normal"]
  assert {row["threshold_method"] for row in rows} == {"slider"}
  assert rows[1]["path"] == "'=1,2.png"  # Not a formula in a spreadsheet.
  threshold = float(rows[0]["pixel_threshold"])
  assert 0 < threshold != want.thresholds.pixel
  for row, want in zip(rows, wanted, strict=True):
    boxes = find_boxes(want.anomaly_map, threshold)
    np.testing.assert_allclose(json.loads(row["boxes"]), boxes, atol=2)
  page.all(".save")[1].click()
  with Image.open(downloaded("=1,2-heatmap.png")) as saved:
    # The legend is below the image.
    assert saved.width == 448 and saved.height > 448 + 60
  assert page.is_sound()


def test_a_guess_about_an_image_is_shown(address, browser, tmp_path):
  page = Page(browser, address, PHONE)
  pages = [make_image(seed) for seed in range(2)]
  path = tmp_path / "pages.tif"
  pages[0].save(path, save_all=True, append_images=pages[1:])
  page.upload(path)
  page.wait_for_results(1)
  remark = "only the first of several pages or frames is used: 2"
  assert page.text(".remark") == remark


def test_bad_files_do_not_affect_other_files(
  address, browser, images, tmp_path
):
  page = Page(browser, address, PHONE)
  large, broken = tmp_path / "large.png", tmp_path / "<b>broken.jpg"
  with large.open("wb") as file:
    file.truncate(32 * 2**20 + 1)
  broken.write_bytes(b"no image")
  first, second, *_ = images
  page.upload(first, broken, large, second)
  page.wait_for_results(2)
  page.count(failed=2)
  # Failed images leave no gaps among the results.
  assert len(page.all("#refused li")) == 2 and len(page.all("#list li")) == 2
  unread = "<b>broken.jpg cannot be read: it is not a valid image file (PNG"
  too_large = "large.png is too large: it has 32.0 MB, and the limit is 32 MB"
  for text in (unread, too_large):
    assert any(text in card.text for card in page.all("li.failed"))
    page.announces(text)
  assert "2 failed" in page.text("#status")
  # More images than the limit are dropped; one notice reports them together.
  blob = f"new Blob([new Uint8Array({32 * 2**20 + 1})])"
  files = (
    f"Array(60).fill({blob}).map((large, i) => new File([large], i + '.png'))"
  )
  page.dispatch("DragEvent", "drop", "dataTransfer", files)
  page.count(failed=48)
  not_added = "Added 46 of 60 images, because the limit is 50."
  assert not_added in page.text("#notice")
  page.announces(not_added)
  page.one("#clear").click()
  assert not page.all("li") and not page.one("#notice").is_displayed()
  files = "[new File(['x'], 'p.png')]"
  page.dispatch("ClipboardEvent", "paste", "clipboardData", files)
  page.count(failed=1)
  assert page.is_sound()


def test_another_method_or_tiles_score_the_images_again(
  address, browser, detector, tmp_path
):
  """The images stay on the page, and the URL contains the choice."""
  path, broken = tmp_path / "large.png", tmp_path / "broken.png"
  make_image(0, 600, 400).save(path)
  broken.write_bytes(b"no image")
  page = Page(browser, address, PHONE)
  options = page.all("#model option")
  assert [option.text for option in options] == ["CoPS", "Prompt ensemble"]
  page.upload(path, broken)
  whole = f"score {detector(path).image_score:.3f}"
  until(lambda: whole in "".join(page.cards()))
  options[1].click()
  page.count(scored=1, failed=1)
  assert whole not in page.cards()[0]
  assert page.text("#about").startswith("Hand-written prompts")
  options[0].click()
  page.one("#tiles").click()
  score = f"score {detector(path, 'auto').image_score:.3f}"
  until(lambda: f"{score}{DOT}3x4 tiles" in "".join(page.cards()))
  assert "thresholds were chosen without tiles" in page.text("#unfit")
  page.count(failed=1)
  assert browser.current_url.endswith("?model=0&tiles=auto")
  browser.refresh()
  until(lambda: page.one("#tiles").is_selected())
  assert not page.all("li") and page.is_sound()


def test_without_thresholds_there_are_scores_but_no_verdicts(
  browser, detector, port, images, monkeypatch
):
  monkeypatch.setattr(detector, "thresholds", ())
  path, want = list(images.items())[1]
  _, answer = post(port, path.read_bytes())
  assert answer["verdict"] is answer["boxes"] is None
  page = Page(browser, f"http://127.0.0.1:{port}", PHONE)
  assert page.text("#about") == "a <model>"
  assert page.text("#image_value") == "not set"
  page.upload(path)
  page.count(scored=1, anomaly=0, normal=0)
  assert page.cards()[0].splitlines()[-3:] == [
    *(f"score {want.image_score:.3f}", "Enlarge", "Save")
  ]
  assert page.text("#status") == "1 image"
  assert page.painted(".outline") == [0]
  assert page.is_sound()


def test_only_verdicts_on_examples_are_right_or_wrong(address, browser, images):
  page = Page(browser, address, DESKTOP, "dark")
  page.one("#all_examples").click()
  found = zip(_draw_examples(), images.values(), strict=False)
  verdicts = {name: image.is_anomaly for name, image in found}
  words = {
    (True, False): "found",
    (True, True): "false alarm",
    (False, False): "missed",
    (False, True): "correct",
  }

  def check(verdicts):
    expected = [
      words[verdict, "good" in name] for name, verdict in verdicts.items()
    ]
    until(lambda: [tag.text for tag in page.all(".tag")] == expected)
    number = sum(word in ("found", "correct") for word in expected)
    page.count(right=number, wrong=8 - number)

  check(verdicts)
  assert page.text("#status").startswith(f"8 images{DOT}")
  page.press("image", HOME)
  check(dict.fromkeys(verdicts, True))
  assert "2 false alarms" in page.text("#status")
  page.press("image", END)
  check(dict.fromkeys(verdicts, False))
  assert "6 missed" in page.text("#status")
  # The truth is not known for files, even if they equal an example.
  page.one("#reset").click()
  page.one("#clear").click()
  page.upload(*list(images)[:2])
  page.count(anomaly=1, normal=1, right=0, wrong=0)
  background = page.one("body").value_of_css_property("background-color")
  assert background == "rgba(18, 22, 29, 1)" and page.is_sound()


def test_the_page_waits_for_a_loading_or_absent_server(
  browser, detector, images
):
  """It starts automatically, and keeps the images that could not be sent."""
  with demo_pages.serve(detector, is_loaded=False) as (port, load):
    address = f"http://127.0.0.1:{port}"
    browser.get(address)
    loading = browser.find_element("id", "loading")
    until(loading.is_displayed)
    load()
    until(lambda: not loading.is_displayed())
    page = Page(browser, f"{address}?model=9", PHONE)
    assert page.text("#notice") == "there is no model 9"
    page.announces("there is no model 9")
    page = Page(browser, address, PHONE)
    page.run("window.setTimeout = (call) => queueMicrotask(call)")
  page.upload(*list(images)[:4])
  until(page.one("#away").is_displayed)
  page.announces("The server does not answer")
  page.all(".example")[0].click()
  assert page.text("#status") == f"5 images{DOT}5 remaining"
  with demo_pages.serve(detector, port=port):
    page.one("#retry").click()
    page.wait_for_results(5)
  assert not page.one("#away").is_displayed() and page.is_sound()
