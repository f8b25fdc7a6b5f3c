"""The report, as text and in a browser."""

import collections
import dataclasses
import io
import re
import sys

import numpy as np
import pytest
from PIL import Image

from cops_jax.evaluation import results
from cops_jax.images.drawing import picture_tiles
from cops_jax.metrics import METRICS
from cops_jax.reporting import report
from helpers.browser import BrowserPage
from helpers.made_results import FIRST, NAN, row

PROVENANCE = {
  "version": "0.1",
  "checkpoint": "step 3 of runs/<made> & found",
  "trained_on": "demo_auxiliary, seed 0",
  "prompts_sha256": "aa" * 32,
  "backbone_sha256": "bb" * 32,
  "device": "8 x cpu",
  "versions": {"jax": "0.10"},
  "config": {"backbone": {"weights": "demo"}, "seed": 0},
}
MINUS = "\N{MINUS SIGN}"
NO_PIXELS = {
  name: value if name.startswith("image") else NAN
  for name, value in FIRST.items()
}


def make_result(name, metrics, num_categories=3):
  rng = np.random.default_rng(0)
  images = [
    results.ImageResult(
      name,
      f"part {index % num_categories}",
      f"{index}<b>.png",
      index % 2,
      score,
    )
    for index, score in enumerate(rng.random(40))
  ]
  steps = np.linspace(0, 1, 50)
  rise = steps.tolist(), (steps**0.3).tolist()
  names = [
    name
    for name in ("image_roc", "image_pr", "pixel_roc", "pixel_pr", "pixel_pro")
    if not np.isnan(metrics["pixel_ap"]) or name.startswith("image")
  ]
  category = results.CategoryResult(
    metrics,
    undefined={
      metric: "no masks" for metric in METRICS if np.isnan(metrics[metric])
    },
    image_threshold=0.5,
    pixel_threshold=0.2,
    num_masks=7,
    curves=dict.fromkeys(names, rise),
  )
  mask = None if np.isnan(metrics["pixel_ap"]) else np.eye(60, dtype=np.uint8)
  tiles = picture_tiles(
    rng.integers(0, 256, (60, 60, 3), np.uint8),
    mask,
    rng.random((60, 60)),
    low=0.0,
    high=1.0,
    threshold=0.2,
  )
  return results.DatasetResult(
    {f"part {index}": category for index in range(num_categories)},
    images,
    [
      results.Picture(kind, image, tiles, 0.0, 0.8)
      for kind in ("best", "worst", "random")
      for image in images[:4]
    ],
    {"x.png": "truncated"},
    identity="1.0.0",
    data_sha256="cc" * 32,
    is_published=True,
    seconds=12.5,
    peak_memory_bytes=10**9,
  )


def write(workdir, found, skipped=(), failed=(), **changes):
  """Returns the path of a report and its text with single spaces."""
  evaluated = results.Evaluated(
    *(found, dict(skipped), dict(failed), PROVENANCE | changes)
  )
  page = report.write(workdir, evaluated)
  return page, re.sub(r"\s+", " ", page.read_text())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  found = {
    "mvtec_ad": make_result("mvtec_ad", FIRST, 15),
    "head_ct": make_result("head_ct", NO_PIXELS, 1),
    "visa": make_result(
      "visa", row(0.9, 0.88, 0.7, 0.9, 0.3, 0.2, 0.1, 0.1), 12
    ),
  }
  return write(
    tmp_path_factory.mktemp("report"),
    found,
    {"btad": "not prepared", "mpdd": "not prepared"},
    {"isic": "broken"},
  )


@pytest.fixture
def page(written):
  return written[0]


@pytest.fixture
def text(written):
  return written[1]


def test_the_page_needs_no_other_file(page, text):
  assert not re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']*""", text)
  assert "http" not in re.sub(r'"data:[^"]*"', "", text)
  assert "<b>" not in text and "0&lt;b&gt;.png" in text
  assert "runs/&lt;made&gt; &amp; found" in text
  names = {path.name for path in page.parent.iterdir()}
  assert names == {"report.html", "results.json", "scores.csv"}


def test_the_page_contains_results_terms_and_reasons(text):
  for words in (
    "largest F1 on the labels of these images",
    "<dt>btad, mpdd</dt><dd>not prepared</dd>",
    "<dt>isic</dt><dd>broken</dd>",
    "pixel AUPRO-200 (no masks)",
    "<th>masks</th>",
    "<td>0.200</td><td>7</td>",
    *(f"<dt>{word}</dt>" for word in ("AUROC", "AUPRO", "F1-max", "AP")),
  ):
    assert words in text


def test_the_papers_results_are_shown_with_differences(text):
  """The made-up results are 90.0; the paper has 95.0 and 85.4."""
  assert f"90.0<small>95.0 {MINUS}5.0</small>" in text
  assert "90.0<small>85.4 +4.6</small>" in text
  # HeadCT has no masks, and undefined metrics are not compared.
  assert text.count("<small>96.1 ") == 1 and "<small>41.9 " in text
  assert "The small numbers are the paper's result" in text


@pytest.mark.parametrize(
  "kind, shots, below, reproduced",
  (("dinov2", 0, "93.5", True), ("dinov2", 4, "98.7", False)),
)
def test_uniadets_paper_results_depend_on_the_backbone(
  tmp_path, kind, shots, below, reproduced
):
  config = {
    "method": "uniadet",
    "seed": 0,
    "backbone": {"kind": kind, "weights": "x"},
    "evaluation": {"num_normal_images": shots},
  }
  names = ("mvtec_ad", "visa")
  found = {name: make_result(name, FIRST) for name in names}
  _, text = write(tmp_path, found, config=config)
  assert f"90.0<small>{below} " in text
  shown = "Reproductions by others report image AUROC 89.6"
  assert (shown in text) == reproduced


def test_papers_are_not_mentioned_without_their_results(tmp_path):
  result = dataclasses.replace(
    make_result("mvtec_ad", FIRST), is_published=False
  )
  few = dataclasses.replace(
    make_result("mvtec_ad", FIRST), normal_images={"part 0": ["a.png"]}
  )
  for found, number in (
    ({"screws": make_result("screws", FIRST)}, 0),
    ({"mvtec_ad": result}, 0),
    ({"mvtec_ad": few}, 1),
  ):
    fields = {"evaluation": {"num_normal_images": number}}
    _, text = write(tmp_path, found, config=PROVENANCE["config"] | fields)
    assert "All values are percentages" in text and "paper's" not in text
  assert "anomaly detection with 1 reference image of each category" in text
  assert "reference images of part 0 (1): a.png" in text


@pytest.mark.parametrize("backbone", ("demo", "other"))
def test_the_top_summarizes_results_and_how_they_were_made(
  tmp_path, monkeypatch, backbone
):
  """Each of two data sets has 40 images and the threshold 0.5."""
  monkeypatch.setattr(sys, "argv", ["cops evaluate", "--workdir=my run"])
  found = {name: make_result(name, FIRST) for name in ("screws", "nuts")}
  counts = collections.Counter(
    (image.label, image.image_score >= 0.5) for image in found["nuts"].images
  )
  config = {**PROVENANCE["config"], "backbone": {"weights": backbone}}
  _, text = write(tmp_path, found, config=config)
  top = text[: text.index("Results")]
  assert (
    f"{2 * counts[1, True]} of 40 anomalous images of 2 data sets were found;"
    f" {2 * counts[0, True]} of 40 normal images were false alarms" in top
  )
  assert "demo_auxiliary, seed 0" in top
  assert re.search(r"20\d\d-\d\d-\d\d \d\d:\d\d UTC", top)
  assert "cops evaluate " in top and "--workdir=my run" in top
  assert ("This CLIP is a toy" in top) == (backbone == "demo")


def test_without_both_kinds_of_images_there_are_no_verdicts(tmp_path):
  result = make_result("screws", NO_PIXELS)
  categories = {
    name: dataclasses.replace(category, image_threshold=NAN)
    for name, category in result.categories.items()
  }
  result = dataclasses.replace(result, categories=categories)
  _, text = write(tmp_path, {"screws": result})
  assert "There are no verdicts, because no category has both" in text
  assert '<span class="tag">anomaly, no verdict</span>' in text


def test_right_verdicts_are_green_and_wrong_ones_red(text):
  """The classes `right` and `wrong` have these colours."""
  captions = re.findall(
    r'<p><span class="tag (right|wrong)">(found|missed|false alarm|correct)'
    r"</span> part (\d), score (0\.\d+), threshold 0\.500<br><span"
    r' class="soft">(\d+)&lt;b',
    text,
  )
  assert len(captions) == 3 * 12
  for side, verdict, _, score, number in captions:
    is_anomaly, is_flagged = int(number) % 2 == 1, float(score) >= 0.5
    assert side == ("right" if is_anomaly == is_flagged else "wrong")
    name = {(1, 1): "found", (1, 0): "missed", (0, 1): "false alarm"}
    assert verdict == name.get((is_anomaly, is_flagged), "correct")
  assert len({verdict for _, verdict, *_ in captions}) >= 3


def test_pictures_have_headings_and_sizes(text):
  titles = re.findall(r"<figcaption>(\w+)</figcaption>", text)
  assert titles == 36 * ["image", "truth", "map", "overlay"]
  images = re.findall(r"<img[^>]*>", text)
  # One of the three data sets has no masks.
  assert len(images) == 12 * (4 + 4 + 3) and text.count(">no mask<") == 12
  assert all('width="224" height="224"' in image for image in images)
  # A quarter of the scale is half-way on the bar, which is square-rooted.
  assert text.count('<i style="left: 50.0%" title="pixel threshold 0.200">')


@pytest.mark.parametrize("width", (1280, 390))
def test_the_page_is_shown_completely_in_a_browser(page, browser, width):
  """There are no errors, nothing is cut off, and every picture is shown."""
  page = BrowserPage(browser, page.as_uri(), width)
  assert browser.get_log("browser") == []
  assert page.run("return window.innerWidth") == width and page.fits()
  sizes = page.run(
    "return Promise.all([...document.images].map(async image => {"
    "  await image.decode();"
    "  return [image.naturalWidth, image.width];"
    "}))"
  )
  assert len(sizes) == 12 * (4 + 4 + 3)
  for natural, shown in sizes:
    assert natural > 0 and 100 < shown <= width
  charts, height = page.run(
    "const charts = [...document.querySelectorAll('.chart')];"
    "return [charts.length, Math.min(...charts.map("
    "  (chart) => chart.getBoundingClientRect().height))]"
  )
  assert charts == 6 + 6 + 3 and height > 150
  shot = Image.open(io.BytesIO(browser.get_screenshot_as_png()))
  assert len(shot.convert("RGB").getcolors(2**24)) > 50
