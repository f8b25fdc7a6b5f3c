"""The web page in a browser."""

import csv
import io
import json
import signal

import numpy as np
import pytest
from PIL import Image

from cops_jax.demo.server import _draw_examples
from cops_jax.images.drawing import heat_colors, overlay
from cops_jax.thresholds import find_boxes
from helpers import demo_pages
from helpers.demo_pages import black, post, until
from helpers.images import make_image
from helpers.scripts import start_afresh

detector, port = demo_pages.detector, demo_pages.port  # Fixtures.


@pytest.fixture(scope="module")
def address():
  """Of the command without arguments, which Ctrl-C ends."""
  with start_afresh("-m", "cops_jax", "demo", "--port=0") as process:
    line = process.stdout.readline()
    yield line.split()[0]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err


PHONE, DESKTOP = 390, 1280


class Page:
  """The page in a browser."""

  def __init__(self, browser, address, width, scheme="light"):
    self.browser = browser
    # Windows have a least width; the page's own can be any.
    browser.execute_cdp_cmd(
      "Emulation.setDeviceMetricsOverride",
      {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": True},
    )
    browser.execute_cdp_cmd(
      "Emulation.setTouchEmulationEnabled", {"enabled": width == PHONE}
    )
    features = {
      "prefers-color-scheme": scheme,
      "prefers-reduced-motion": "reduce",  # What is clicked stands still.
    }
    browser.execute_cdp_cmd(
      "Emulation.setEmulatedMedia",
      {"features": [{"name": k, "value": v} for k, v in features.items()]},
    )
    browser.get(address)
    until(lambda: self.all("#all_examples, #notice:not([hidden])"))
    self.run(
      "window.announced = [];"
      "const live = document.getElementById('live');"
      "new MutationObserver(() => announced.push(live.textContent))"
      "  .observe(live, {childList: true});"
    )

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

  def heat(self):
    """By card the sum of its map's opacities."""
    return self.run(
      "return [...document.querySelectorAll('.heat')].map((canvas) =>"
      "  canvas.getContext('2d').getImageData(0, 0, canvas.width,"
      "    canvas.height).data.reduce((sum, value, i) =>"
      "      sum + (i % 4 === 3 ? value : 0), 0));"
    )

  def boxes(self, selector):
    """Left, top, right and bottom of what is seen, in the window."""
    return self.run(
      "return [...document.querySelectorAll(arguments[0])]"
      "  .filter((element) => element.checkVisibility())"
      "  .map((element) => element.getBoundingClientRect())"
      "  .map((box) => [box.left, box.top, box.right, box.bottom]);",
      selector,
    )

  def styles(self, selector, name):
    """By element what a property is computed to."""
    return self.run(
      "return [...document.querySelectorAll(arguments[0])].map((element) =>"
      "  getComputedStyle(element)[arguments[1]]);",
      *(selector, name),
    )

  def color(self, name):
    """A colour, or one of the page's names, as computed styles have it."""
    return self.run(
      "const probe = document.createElement('i');"
      "probe.style.color = arguments[0].startsWith('--')"
      "  ? `var(${arguments[0]})` : arguments[0];"
      "document.body.append(probe);"
      "const {color} = getComputedStyle(probe); probe.remove(); return color;",
      name,
    )

  def sees(self, selector):
    """Whether all of one element is in the window."""
    return self.run(
      "const box = document.querySelector(arguments[0])"
      "  ?.getBoundingClientRect();"
      "return Boolean(box) && box.top >= 0 && box.bottom <= innerHeight;",
      selector,
    )

  def announced(self):
    return self.run("return announced.join(' ')")

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


@pytest.mark.parametrize("width", (DESKTOP, PHONE))
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
  chosen = page.heat()
  assert page.all(".top")[0].text == "0.62"  # Twice the threshold.
  page.one("#pixel").send_keys("\ue011")
  until(lambda: all("1 region" in card["text"] for card in page.cards()))
  # All of the image is one region: a frame around it would show nothing.
  assert not any(page.outlined()) and page.all(".top")[0].text == "0.01"
  most = page.heat()
  page.one("#pixel").send_keys("\ue010")
  until(lambda: all("no regions" in card["text"] for card in page.cards()))
  assert not any(page.outlined()) and page.all(".top")[0].text == "1.00"
  for low, middle, high in zip(page.heat(), chosen, most, strict=True):
    assert low < middle < high or low == middle == high == 0
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
  page = Page(browser, address, DESKTOP)
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
  # The picture, without outlines, has the colours of `predict`'s by the
  # slider's threshold, and below it what it says.
  page.one("#pixel").send_keys("\ue010")
  until(lambda: page.one("#pixel_value").text == "1.000")
  page.run(
    "window.written = [];"
    "const {fillText} = CanvasRenderingContext2D.prototype;"
    "CanvasRenderingContext2D.prototype.fillText = function (text, ...rest) {"
    "  written.push(text); fillText.call(this, text, ...rest); };"
  )
  page.all(".save")[1].click()
  with Image.open(downloaded("=1,2-heatmap.png")) as saved:
    got = np.asarray(saved.convert("RGB"))
  with Image.open(paths[1]) as image:
    shown = image.resize((448, 448))  # Small ones are enlarged for the text.
  expected = overlay(
    np.asarray(shown), resized(wanted[1].anomaly_map, 448), 0.0, 2.0
  ).astype(int)
  assert got.shape[1] == 448 and got.shape[0] > 448 + 60
  assert np.abs(got[:448] - expected).mean() < 4
  assert np.abs(expected - np.asarray(shown)).max() > 50
  score = f"{wanted[1].image_score:.3f}"
  assert page.run("return written") == [
    paths[1].name,
    f"normal \N{MIDDLE DOT} score {score} \N{MIDDLE DOT} threshold 1.000"
    " \N{MIDDLE DOT} no regions",
    *("0", "1.00", "regions from 1.000"),
  ]
  legend = got[448:]
  assert (legend < 80).all(axis=2).sum() > 300  # Its text is black.
  # The colour bar: up to the highest value there is, over grey.
  values = np.linspace(0, 1, 9)[1:-1]
  colors = heat_colors(values[None], 0.0, 2.0)[0]
  opacity = 0.7 * np.sqrt(values / 2)[:, None]
  bar = opacity * colors + (1 - opacity) * 0x8A
  columns = 6 + (values * (448 - 13)).astype(int)
  distance = np.abs(legend[:, columns] - bar).max(axis=(1, 2))
  assert distance.min() < 8
  assert page.errors() == []


def resized(anomaly_map, side):
  image = Image.fromarray(anomaly_map).resize((side, side))
  return np.asarray(image)


@pytest.mark.parametrize("width", (DESKTOP, PHONE))
def test_bad_files_do_not_affect_the_others(
  address, browser, images, tmp_path, width
):
  page = Page(browser, address, width)
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
  # They leave no holes among the results, which stand in rows.
  assert len(page.all("#refused li")) == 3 and len(page.all("#list li")) == 2
  one, two = page.boxes("#list li")
  assert one[2] < two[0] and one[1::2] == two[1::2] or width == PHONE
  names = ("<b>broken.jpg", "large.png", "bomb.png")
  until(lambda: all(name in page.announced() for name in names))
  # Dropped, and more than the page holds: told together.
  page.run(
    "const data = new DataTransfer();"
    f"const large = new Blob([new Uint8Array({20 * 2**20 + 1})]);"
    "for (let i = 0; i < 60; i++)"
    "  data.items.add(new File([large], `${i}.png`));"
    "document.dispatchEvent(new DragEvent('drop', {dataTransfer: data}));"
  )
  page.count(failed=48)
  left_out = "15 of 60 were left out: the page holds 50 images;"
  assert left_out in page.one("#notice").text
  until(lambda: left_out in page.announced())
  assert ". and 43 more. " in page.announced()
  page.one("#clear").click()
  assert not page.all("li") and not page.one("#notice").is_displayed()
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


def test_the_switch_for_tiles(address, browser, detector, tmp_path):
  path = tmp_path / "large.png"
  make_image(0, 600, 400).save(path)
  want = detector(path, "auto")
  page = Page(browser, address, PHONE)

  def switch(address):
    page.one("#tiles").click()
    until(lambda: browser.current_url.endswith(address))
    until(lambda: page.all("#all_examples"))

  switch("?model=0&tiles=auto")
  assert page.one("#tiles").is_selected() and page.fits()
  assert "thresholds were chosen without tiles" in page.one("#unfit").text
  page.upload(path)
  page.count(scored=1)
  (card,) = page.cards()
  score = f"score {want.image_score:.3f}"
  assert f"{score} \N{MIDDLE DOT} 3x4 tiles" in card["text"]
  switch("?model=0")
  assert not page.one("#tiles").is_selected()
  assert page.one("#unfit").text == "" and page.errors() == []


def test_without_thresholds(browser, detector, port, images, monkeypatch):
  monkeypatch.setattr(detector, "thresholds", None)
  path, want = list(images.items())[1]
  status, answer = post(port, path.read_bytes())
  assert status == 200 and answer["verdict"] is answer["boxes"] is None
  page = Page(browser, f"http://127.0.0.1:{port}", PHONE)
  assert page.one("#about").text == "a <model>"
  assert page.one("#image_value").text == "not set"
  page.upload(path)
  page.count(scored=1, anomaly=0, normal=0)
  (card,) = page.cards()
  score = f"score {want.image_score:.3f}"
  assert card["text"].splitlines() == [
    path.name,
    "\N{MULTIPLICATION SIGN}",
    *("Image", "Anomaly map", "0", "1.00"),
    score,
    "PNG",
  ]
  assert page.one("#status").text == "1 image"
  assert page.outlined() == [0] and not page.boxes(".mark")
  # Each slider brings what it decides.
  page.one("#pixel").send_keys("\ue011")
  until(lambda: "1 region" in page.cards()[0]["text"])
  page.count(scored=1)
  assert len(page.boxes(".ramp .mark")) == 1 and not page.boxes(".scale .mark")
  page.one("#image").send_keys("\ue011")
  page.count(anomaly=1, scored=0)
  page.one("#reset").click()
  page.count(scored=1, anomaly=0)
  # Nor is an example right or wrong.
  page.all(".example")[0].click()
  page.count(scored=2, right=0, wrong=0)
  assert page.outlined() == [0, 0] and page.errors() == []


def test_a_choice_of_methods(address, browser, images):
  """The command without arguments has two; the choice is in the address."""
  page = Page(browser, address, PHONE)
  options = [option.text for option in page.all("#model option")]
  assert options == ["CoPS", "Prompt ensemble"]
  assert page.one("#choice").is_displayed()
  about = page.one("#about").text
  page.all("#model option")[1].click()
  until(lambda: browser.current_url.endswith("?model=1"))
  until(lambda: page.all("#all_examples"))
  assert page.one("#model").get_attribute("value") == "1"
  assert "Hand-written prompts" in page.one("#about").text != about
  assert page.run("return document.body.scrollWidth") <= PHONE


def test_examples_are_judged_and_other_images_are_not(address, browser, images):
  page = Page(browser, address, DESKTOP)
  page.one("#all_examples").click()
  verdicts = {
    name: found.is_anomaly
    for name, found in zip(_draw_examples(), images.values(), strict=False)
  }
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
    kinds = [
      "good" if word in ("found", "correct") else "bad" for word in expected
    ]
    colors = {kind: page.color(f"--{kind}") for kind in ("good", "bad")}
    assert (
      [colors[kind] for kind in kinds]
      == page.styles("#list li", "borderLeftColor")
      == page.styles(".tag", "borderLeftColor")
    )

  check(verdicts)
  assert page.one("#status").text.startswith("8 images \N{MIDDLE DOT} ")
  page.one("#image").send_keys("\ue011")
  check(dict.fromkeys(verdicts, True))
  assert "2 false alarms" in page.one("#status").text
  page.one("#image").send_keys("\ue010")
  check(dict.fromkeys(verdicts, False))
  assert "6 missed" in page.one("#status").text
  # The same picture as a file of the same name: what it shows is not known.
  page.one("#reset").click()
  page.one("#clear").click()
  page.upload(*list(images)[:2])
  page.count(anomaly=1, normal=1, right=0, wrong=0)
  seen = {
    color
    for what in ("color", "backgroundColor", "borderLeftColor")
    for color in page.styles("#list, #list *", what)
  }
  assert not seen & {page.color("--good"), page.color("--bad")}
  assert page.color("--link") in seen
  assert page.errors() == []


def test_a_phone(address, browser, tmp_path):
  page = Page(browser, address, PHONE)
  assert page.one(".drop span.by_touch").text == "Choose or take photos"
  assert not page.one(".by_mouse").is_displayed()
  # What is tapped is followed to where it appears.
  page.all(".example")[0].click()
  page.count(right=1)
  assert page.sees("#list li:first-child")
  page.run("scrollTo(0, 0)")
  assert not page.sees("#list li:first-child")
  page.one("#all_examples").click()
  page.count(right=8, wrong=1)
  assert page.sees("#list li:nth-child(2)")
  page.upload(make_bad(tmp_path, 0))
  until(lambda: page.sees("#refused li"))
  page.run("scrollTo(0, 0)")
  page.one("summary").click()
  small = [
    box
    for box in page.boxes("button, select, summary, .closer, input[type=range]")
    if min(box[2] - box[0], box[3] - box[1]) < 44
  ]
  assert not small and page.fits()
  page = Page(browser, address, DESKTOP)
  assert "Drop images here" in page.one(".drop").text
  assert not page.one(".by_touch").is_displayed()
  page.all(".example")[0].click()
  page.count(right=1)
  assert page.run("return scrollY") == 0


def test_a_server_that_is_away(browser, detector, images):
  with demo_pages.serve(detector) as port:
    page = Page(browser, f"http://127.0.0.1:{port}", PHONE)
    page.run("window.setTimeout = (call) => queueMicrotask(call)")
  page.all(".example")[0].click()
  page.upload(list(images)[0])
  page.count(failed=2)
  said = [
    f"{name} was not sent: the server does not answer"
    for name in ("wood_good.png", "0.png")
  ]
  texts = [state.text for state in page.all("#refused .state")]
  assert sorted(texts) == sorted(said)
  until(lambda: all(text in page.announced() for text in said))
  assert page.errors() == []


def test_a_page_that_cannot_start(browser, port):
  page = Page(browser, f"http://127.0.0.1:{port}?model=9", PHONE)
  assert page.one("#notice").text == "there is no model 9"
  until(lambda: "there is no model 9" in page.announced())
  assert page.errors() == []


@pytest.mark.parametrize("scheme", ("light", "dark"))
def test_contrast(address, browser, images, tmp_path, scheme):
  page = Page(browser, address, DESKTOP, scheme)
  dark = page.run(
    "return getComputedStyle(document.body).backgroundColor"
  ) == page.color("#12161d")
  assert dark == (scheme == "dark")
  assert not page.one("#reading").get_attribute("open")
  page.one("summary").click()
  # Cards of each kind: right, wrong, unknown, failed; and files left out.
  page.one("#all_examples").click()
  page.upload(*list(images)[:2], *[make_bad(tmp_path, i) for i in range(41)])
  page.count(right=7, wrong=1, failed=40)
  until(lambda: len(page.all("li.anomaly, li.normal")) == 10)
  assert page.one("#notice").is_displayed()
  assert page.run(CONTRASTS, page.color("--edge"), page.color("--link")) == []
  # The ring of what has the keyboard's focus, and what announces.
  for _ in range(16):
    page.run("return document.activeElement").send_keys("\ue004")
    ring = page.run(RING)
    assert ring["width"] >= 2 and ring["contrast"] >= 3, ring
  regions = "[role=status], [role=alert], [role=log], [aria-live], output"
  assert len(page.all(regions)) == 1


def make_bad(folder, number):
  path = folder / f"bad{number}.png"
  path.write_bytes(b"no image")
  return path


# As WCAG has it: of text 4.5, of what can be clicked 3.
_RATIO = """
const parse = (text) => text.match(/[\\d.]+/g).map(Number);
const luminance = (color) => color.slice(0, 3)
  .map((value) => value / 255)
  .map((value) => value <= 0.04045 ? value / 12.92
    : ((value + 0.055) / 1.055) ** 2.4)
  .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
function ratio(text, element) {
  let back;
  for (; element; element = element.parentElement) {
    back = parse(getComputedStyle(element).backgroundColor);
    if (back[3] !== 0) break;
  }
  const [low, high] = [luminance(parse(text)), luminance(back)]
    .sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}
"""
CONTRASTS = (
  _RATIO
  + """
const low = [];
const check = (what, color, element, least) => {
  const found = ratio(color, element);
  if (!(found >= least)) low.push([what, color, found]);
};
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
let number = 0;
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  const text = walker.currentNode.data.trim();
  if (!text || !element.checkVisibility()) continue;
  number++;
  check(text, getComputedStyle(element).color, element, 4.5);
}
const controls = "button:not(.remove, :disabled), select, .drop";
for (const element of document.querySelectorAll(controls)) {
  const style = getComputedStyle(element);
  check(element.id, style.borderTopColor, element.parentElement, 3);
  number++;
}
for (const color of [arguments[0], arguments[1]])
  check("slider", color, document.querySelector("#pixel"), 3);
return number > 100 ? low : [number];
"""
)
RING = (
  _RATIO
  + """
let element = document.activeElement;
if (element.id === "files") element = element.closest(".drop");
const style = getComputedStyle(element);
return {
  what: element.id || element.className,
  width: style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth),
  contrast: ratio(style.outlineColor, element.parentElement),
};
"""
)
