"""The output folder of `cops predict`."""

import csv
import json
import re

import numpy as np
import pytest
from PIL import Image

from cops_jax.errors import InputError
from cops_jax.images.drawing import to_file
from cops_jax.images.finding import MANIFEST, find_images
from cops_jax.reporting import predictions
from cops_jax.thresholds import Thresholds
from helpers.browser import BrowserPage

# Names of images, the highest score first.
NAMES = ("=1,<b>#", "größe 日本", "third")


@pytest.fixture
def folder(tmp_path):
  """Returns a folder with predictions of three images and an unreadable file.

  The picture of the first image is missing.
  """
  chosen = Thresholds(0.5, 0.25, "by <hand>")
  rows = [{"path": "photos/broken.png", "error": "no <image>"}]
  thumbnails = {}
  for place, name in enumerate(NAMES):
    score = 0.8 - 0.2 * place
    rows.append(
      {
        "path": f"{'photos/' * place}{name}.png",
        "image_score": score,
        "verdict": "anomaly" if score >= chosen.image else "normal",
        "threshold": chosen.image,
        "threshold_method": chosen.method,
        "boxes": [(1, 2, 3, 4)] if place == 0 else [],
        "picture": f"pictures/{name}.jpg",
      }
    )
    image = Image.new("RGB", (602, 300), (10 + place, 0, 0))
    thumbnails[rows[-1]["picture"]] = to_file(image, "WEBP")
    if place:
      path = tmp_path / rows[-1]["picture"]
      path.parent.mkdir(exist_ok=True)
      image.resize((1204, 600)).save(path)
  rows[-1]["note"] = "too dark"
  predictions.write(tmp_path, rows, thumbnails, "4 <images>", chosen, True)
  return tmp_path


def test_predictions_are_written_as_lines_and_as_a_table(folder):
  lines = (folder / "predictions.jsonl").read_text("utf-8").splitlines()
  assert "größe 日本" in lines[2] and len(lines) == 4
  content = (folder / "predictions.csv").read_bytes()
  assert content.startswith(b"\xef\xbb\xbf")
  rows = list(csv.DictReader(content.decode("utf-8-sig").splitlines()))
  assert [row["path"] for row in rows] == [
    *("photos/broken.png", "'=1,<b>#.png"),
    *("photos/größe 日本.png", "photos/photos/third.png"),
  ]
  assert rows[0]["error"] == "no <image>" and rows[3]["note"] == "too dark"
  assert (
    rows[1]["image_score"] == "0.8" and rows[1]["boxes"] == "[[1, 2, 3, 4]]"
  )


@pytest.mark.parametrize("width, scheme", ((1280, "light"), (390, "dark")))
def test_the_page_works_in_a_browser(folder, browser, width, scheme):
  page = BrowserPage(
    browser, (folder / predictions.PAGE).as_uri(), width, scheme
  )

  def one(selector):
    return page.all(selector)[0]

  def shown():
    rows = page.all("li:not([hidden]) h2")
    return [row.get_attribute("title").split("/")[-1] for row in rows]

  def enlarged():
    script = "const i = document.querySelector('dialog img');"
    script += "return new Promise((end) => setTimeout(() => end(i.src), 200))"
    return page.run(script)

  everything = [*(f"{name}.png" for name in NAMES), "broken.png"]
  assert shown() == everything and one("h1").text == "4 <images>"
  assert one("li").text.split("\n")[0] == "=1,<b>#.png"
  assert "anomaly score 0.800, 1 region" in one("li").text
  assert "by <hand>" in one("main").text and "is a toy" in one(".note").text
  assert page.fits()
  assert page.run(
    "return [...document.querySelectorAll('li img')].every("
    "  (image) => image.naturalWidth === 602 && image.width > 200)"
  )
  one("li a").click()  # The picture of this image is missing.
  assert enlarged().startswith("data:image/webp")
  one("dialog").send_keys("\ue014")  # The right arrow.
  assert enlarged().endswith("/gr%C3%B6%C3%9Fe%20%E6%97%A5%E6%9C%AC.jpg")
  one("dialog").click()
  assert not one("dialog").is_displayed()
  one("#only").click()
  assert shown() == everything[:2] and one("#shown").text == "2 of 4 shown"
  one("#search").send_keys("GRÖS")
  assert shown() == []
  one("#search").send_keys("\ue003ß")  # After a backspace.
  assert shown() == everything[1:2]
  log = browser.get_log("browser")
  assert all("ERR_FILE_NOT_FOUND" in entry["message"] for entry in log)


def test_earlier_results_are_replaced_and_other_files_are_kept(folder, caplog):
  """Only listed files in the folder are deleted."""
  out = folder / "out"
  predictions.replace_earlier(
    out, [*predictions.FILES, "pictures/a.jpg", "maps/a.npy"]
  )
  names = (
    *predictions.FILES,
    "pictures/a.jpg",
    "notes.txt",
    "pictures/mine.png",
  )
  for name in names:
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text(name)
  listed = json.loads((out / MANIFEST).read_text())
  listed += ["notes.txt", "../predictions.csv", "pictures/../notes.txt"]
  (out / MANIFEST).write_text(json.dumps(listed))
  with pytest.raises(InputError, match="mine.png was not written by this com"):
    predictions.replace_earlier(out, ["pictures/mine.png"])
  assert (out / predictions.PAGE).exists()
  caplog.set_level("INFO")
  predictions.replace_earlier(out, [*predictions.FILES, "pictures/b.jpg"])
  assert re.search("results: notes.txt, pictures/mine.png$", caplog.text)
  left = {path.relative_to(out).as_posix() for path in out.rglob("*.*")}
  assert left == {MANIFEST, "notes.txt", "pictures/mine.png"}
  assert (folder / "predictions.csv").exists()


def test_output_folders_are_not_read(tmp_path):
  """These are the folder --out and the output folders of earlier runs."""
  for name in ("a.png", "new/b.png", "old/pictures/c.png"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / name)
  predictions.replace_earlier(tmp_path / "old", [])
  for place in (tmp_path, tmp_path / "**/*.png"):
    assert find_images([str(place)], tmp_path / "new") == [tmp_path / "a.png"]
  named = tmp_path / "old/pictures"
  assert find_images([str(named)]) == [named / "c.png"]
